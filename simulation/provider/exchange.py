"""What a request holds and what is answered, for all the APIs that the stand-in speaks."""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read whole. `steps`: of the path, those that name the API left out."""

    method: str
    steps: list[str]
    query: dict[str, list[str]]
    authorization: str | None
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What is answered.

    Args:
        body: written as JSON.
        headers: beside Content-Type and Content-Length; a Content-Type here replaces application/json.
        cut: close the connection without any answer.
        after_s: let the client wait this long.
    """

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    after_s: float = 0.0


class Door(Protocol):
    """One API: who may come in, and what is answered; both raise Refused."""

    def admit(self, request: Request) -> None:
        """Refuse a request without the right key."""

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request that was admitted."""


class Refused(Exception):
    """The request ends with this answer of 4xx or 5xx."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def problem(status: int, title: str, detail: str, **more: Any) -> Answer:
    """Return `{"title", "detail", "status"}`, as Replicate words what is wrong."""
    body = {"title": title, "detail": detail, "status": status, **more}
    return Answer(status, body, {"Content-Type": "application/problem+json"})


def not_found() -> Refused:
    """Return the end of what names nothing."""
    return Refused(problem(404, "Not Found", "The requested resource could not be found."))


def json_object(body: bytes) -> dict[str, Any]:
    """Return the body; raises Refused when it is no JSON object."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(problem(400, "Bad Request", "The body is not JSON.")) from error
    if not isinstance(asked, dict):
        raise Refused(problem(400, "Bad Request", "The body is not a JSON object."))
    return asked


def is_authorized(request: Request, wanted: str) -> bool:
    """Return whether the request's Authorization is `wanted`, compared in constant time."""
    return hmac.compare_digest(wanted.encode(), (request.authorization or "").encode("utf-8", "replace"))


def is_url(value: object) -> TypeGuard[str]:
    """Return whether a value is an http: or https: address."""
    if not isinstance(value, str) or not value.isascii() or not value.startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
