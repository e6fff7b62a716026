"""Error responses as `application/problem+json` (RFC 9457)."""

from http import HTTPStatus
from typing import Any, Final

CONTENT_TYPE: Final = "application/problem+json"

# The last part of a problem's `type`, by status.
KINDS: Final = {
    400: "unreadable",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method",
    408: "too_slow",
    409: "conflict",
    412: "changed",
    413: "too_large",
    415: "media_type",
    416: "range",
    422: "invalid",
    429: "limit_reached",
    431: "headers_too_large",
    500: "internal",
    503: "unavailable",
}


def build_problem(status: int, detail: str, *, kind: str | None = None) -> dict[str, Any]:
    """Return a problem. `detail`: the problem and its remedy; `kind`: the last part of `type`, if not that of KINDS."""
    urn = f"urn:moorage:problem:{kind or KINDS[status]}"
    return {"type": urn, "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
