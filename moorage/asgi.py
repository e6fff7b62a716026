"""ASGI applications that are built when their server starts, and error responses as problem+json (RFC 9457)."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from moorage.errors import ConfigError

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


class LazyApp:
    """An ASGI application for HTTP that `start` builds at lifespan startup and stops at its end."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[ASGIApp]]) -> None:
        self._start = start
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif self._app is None:
            raise RuntimeError("lifespan was not started: run the server with --interface asgi")
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
        elif [bool(value) for name, value in scope["headers"] if name == b"host"] != [True]:
            await _refuse_host(send)  # granian adds an empty one where there is none
        else:
            await self._app(scope, receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        phase = "startup"
        try:
            await receive()
            async with self._start() as self._app:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                phase = "shutdown"
            await send({"type": "lifespan.shutdown.complete"})
        except Exception as error:  # without this message, granian would serve nevertheless
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            if not isinstance(error, ConfigError):
                raise


async def _refuse_host(send: Send) -> None:
    """A proxy may have routed by another Host than the one that is read here (RFC 9112, 3.2)."""
    problem = build_problem(400, "the request has no Host header, or several: send one")
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem).encode()})
