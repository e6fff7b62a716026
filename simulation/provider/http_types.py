"""Requests and responses of the simulated APIs, without sockets."""

import hmac
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request. `steps`: the parts of the path after the one that names the API."""

    method: str
    steps: list[str]
    query: dict[str, list[str]]
    authorization: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """
    A response.

    Args:
        body: serialised as JSON.
        headers: besides Content-Length; a Content-Type replaces application/json.
        is_dropped: close the connection without sending it.
        delay_s: wait before sending it.
    """

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    is_dropped: bool = False
    delay_s: float = 0.0


class Refused(Exception):
    """The request ends with this 4xx or 5xx response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Api(ABC):
    """One simulated API; `authorization` is the header that it requires."""

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization

    def authenticate(self, request: Request) -> None:
        """Raise Refused without the right credentials. The comparison takes constant time."""
        given = (request.authorization or "").encode("utf-8", "replace")
        if not hmac.compare_digest(self._authorization.encode(), given):
            raise Refused(self._unauthorized())

    @abstractmethod
    def handle(self, request: Request) -> Response:
        """Return the response to an authenticated request, or raise Refused."""

    def _unauthorized(self) -> Response:
        return problem(401, "Unauthenticated", "You did not pass a valid authentication token.")


def problem(status: int, title: str, detail: str, **more: Any) -> Response:
    """Return an error in Replicate's format: `{"title", "detail", "status"}`."""
    body = {"title": title, "detail": detail, "status": status, **more}
    return Response(status, body, {"Content-Type": "application/problem+json"})


def not_found() -> Refused:
    return Refused(problem(404, "Not Found", "The requested resource could not be found."))


def parse_json_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(problem(400, "Bad Request", "The body is not JSON.")) from error
    if not isinstance(parsed, dict):
        raise Refused(problem(400, "Bad Request", "The body is not a JSON object."))
    return parsed


def is_url(value: object) -> TypeGuard[str]:
    """Return True if a value is an absolute http: or https: URL."""
    if not isinstance(value, str) or not value.isascii() or not value.startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
