"""Requests and responses of the simulated APIs, and the base class of HTTP handlers."""

import hmac
import http.server
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

import requests

FAL_USER: Final = "standin-user"  # the user id in fal's webhooks


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request. `steps`: the parts of the path after the one that names the API."""

    method: str
    steps: list[str]
    query: dict[str, list[str]]
    authorization: str | None
    body: bytes
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: Any  # serialised as JSON
    headers: Mapping[str, str] = field(default_factory=dict)  # a Content-Type replaces application/json
    is_dropped: bool = False  # close the connection without sending it
    delay_s: float = 0.0  # wait before sending it


class Refused(Exception):
    """The request ends with this 4xx or 5xx response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Handler(http.server.BaseHTTPRequestHandler):
    """Calls `respond` for every method, and logs no requests."""

    protocol_version = "HTTP/1.1"
    server_version = "standin"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.respond()

    do_POST = do_PUT = do_GET  # noqa: N815 (names of the base class)

    def respond(self) -> None:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **({"Connection": "close"} if self.close_connection else {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_all(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send status, headers with the length, and the body."""
        self.send_head(status, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)


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


# API keys have three formats, so that a mix-up is detected.
def fal_key(token: str) -> str:
    return f"standin:{token}"


def openai_key(token: str) -> str:
    return f"sk-{token}"


def problem(status: int, title: str, detail: str, **more: Any) -> Response:
    """Return an error in Replicate's format: `{"title", "detail", "status"}`."""
    body = {"title": title, "detail": detail, "status": status, **more}
    return Response(status, body, {"Content-Type": "application/problem+json"})


def not_found() -> Refused:
    return Refused(problem(404, "Not Found", "The requested resource could not be found."))


def parse_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(problem(400, "Bad Request", "The body is not JSON.")) from error
    if not isinstance(parsed, dict):
        raise Refused(problem(400, "Bad Request", "The body is not a JSON object."))
    return parsed


def send(method: str, url: str, timeout_s: float, **fields: Any) -> requests.Response:
    """Send a request, without a proxy; a redirect is not followed. Raises requests.RequestException."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=timeout_s, allow_redirects=False, **fields)


def is_url(value: object) -> TypeGuard[str]:
    """Return True if a value is an absolute http: or https: URL."""
    if not isinstance(value, str) or not value.isascii() or not value.startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
