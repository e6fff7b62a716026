"""JSON responses, and errors as `application/problem+json` (RFC 9457)."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.responses import Response

from moorage import logs, metrics
from moorage.asgi import CONTENT_TYPE, build_problem

FieldError = dict[str, str]  # `field` and `message`

_NO_SNIFF: Final = {"X-Content-Type-Options": "nosniff"}  # a response repeats text of clients and providers
REQUEST_ID: Final = "request_id"  # of problems and log lines: the header X-Request-Id of request and response
NO_STORE: Final = {"Cache-Control": "no-store"}
_NOUNS: Final = {"output": "file"}  # of path parameters, where the noun is another


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
        if request_id := logs.get_bound_field(REQUEST_ID):
            fields[REQUEST_ID] = request_id
        headers = {**NO_STORE, **_NO_SNIFF, **self.headers}
        return Response(json.dumps(fields), self.status, headers, CONTENT_TYPE)


def unavailable(detail: str) -> Problem:
    """Return a 503 with a Retry-After of one second, and count it."""
    metrics.API_UNAVAILABLE.inc()
    return Problem(503, detail, headers={"Retry-After": "1"})


def not_found(noun: str) -> Problem:
    return Problem(404, f"{noun} not found")


def invalid_parameter(name: str) -> Problem:
    """Return the problem of an invalid path parameter: the same as for an unknown id."""
    noun = name.removesuffix("_id").replace("_", " ")
    return not_found(_NOUNS.get(noun, noun))


async def add_headers(response: Response) -> None:
    """Dependency: set the headers of every JSON response."""
    response.headers.update({**NO_STORE, **_NO_SNIFF})
