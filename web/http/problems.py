"""JSON responses, and errors as `application/problem+json` (RFC 9457)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response

from moorage import metrics
from moorage.problem_json import CONTENT_TYPE, build_problem

FieldError = dict[str, str]  # `field` and `message`

_NO_SNIFF: Final = {"X-Content-Type-Options": "nosniff"}  # a response repeats text of clients and providers
NO_STORE: Final = {"Cache-Control": "no-store"}


class Problem(Exception):
    """A response other than 2xx. The client reads `detail`, so it must not reveal internals (hosts, users, paths)."""

    def __init__(
        self, status: int, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status: Final = status
        self.detail: Final = detail
        self.errors: Final = errors
        self.headers: Final = dict(headers or {})

    def response(self) -> Response:
        fields = build_problem(self.status, self.detail)
        if self.errors:
            fields["errors"] = self.errors
        return _build_response(self.status, fields, CONTENT_TYPE, self.headers)


def unavailable(detail: str) -> Problem:
    """Return a 503 with a Retry-After of one second, and count it."""
    metrics.API_UNAVAILABLE.inc()
    return Problem(503, detail, headers={"Retry-After": "1"})


def json_response(status: int, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return fields as JSON; ids and times become text, integers stay exact."""
    return _build_response(status, fields, "application/json", headers or {})


def _build_response(status: int, fields: Mapping[str, Any], media_type: str, headers: Mapping[str, str]) -> Response:
    body = json.dumps(fields, default=_as_text, allow_nan=False).encode()
    return Response(body, status, {**NO_STORE, **_NO_SNIFF, **headers}, media_type)


def _as_text(value: Any) -> str:
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
