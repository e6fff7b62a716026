"""
The front: one ASGI application with the API and the receiver side by side.

`granian --interface asgi --workers 1 web.front:app`. The receiver alone is `receiver.app:app`, the API alone
`web.app:app`.
"""

import importlib
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from web import app as api
from web import openapi, routes
from web.lives import Life
from web.page import serving as page

WEBHOOKS: Final = "/api/v1/webhooks/"


class Front:
    """Hands the API and the page their paths, and the receiver all others; both live as long as the server."""

    def __init__(self, *, api: ASGIApp, receiver: ASGIApp) -> None:
        self._api = api
        self._receiver = receiver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the process."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        app = self._api if is_api(scope["path"]) else self._receiver
        await app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start both, stop both; where one refuses to start, the other is stopped and the refusal passed on."""
        await receive()
        started: list[Life] = []
        for app in (self._receiver, self._api):
            life = Life(app, scope)
            answer = await life.start()
            if answer["type"] != "lifespan.startup.complete":
                await _stop(started)
                await send(answer)
                return
            started.append(life)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _stop(started)
        await send({"type": "lifespan.shutdown.complete"})


def is_api(path: str) -> bool:
    """Return whether a path is the API's or the page's; webhooks may come under /api/v1 too: the receiver's."""
    if path.startswith(WEBHOOKS):
        return False
    if path == openapi.PATH or page.is_page(path):
        return True
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in routes.PREFIXES)


async def _stop(lives: list[Life]) -> None:
    for life in reversed(lives):
        await life.stop()


# By name: the receiver is a neighbour, which must not be imported from here.
app = Front(api=api.app, receiver=importlib.import_module("receiver.app").app)
