"""Responses as values, and sending them over ASGI."""

import json
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from starlette.types import Send

from moorage import asgi

Headers = list[tuple[bytes, bytes]]

KINDS: Final = {**asgi.KINDS, 401: "bad_signature"}  # the last part of a problem's `type`; a label of metrics


class Response(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_response(status: int, fields: dict[str, Any]) -> Response:
    return Response(status, json.dumps(fields).encode())


def problem_response(status: int, detail: str, *headers: tuple[bytes, bytes]) -> Response:
    """Return an `application/problem+json` response (RFC 9457); `detail` states the problem and the remedy."""
    fields = asgi.build_problem(status, detail, kind=KINDS[status])
    return Response(status, json.dumps(fields).encode(), asgi.CONTENT_TYPE, headers)


async def send_response(send: Send, response: Response, *, method: str) -> None:
    """Send a response; to HEAD with its headers and without its body."""
    headers: Headers = [(b"cache-control", b"no-store"), *response.headers]
    if response.status != HTTPStatus.NO_CONTENT:
        headers.append((b"content-type", response.content_type.encode()))
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else response.body})
