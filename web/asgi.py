"""
The front: one ASGI application with the API and the receiver side by side.

`granian --interface asgi --workers 1 web.asgi:app`. The receiver alone is `receiver.app:app`, the API alone
`web.app:app`.
"""

import asyncio
import importlib
from typing import Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web import app as api
from web import openapi, routes
from web.page import views as page


class AppLifespan:
    """Passes the server's two events on to one application and its answers back."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._app = app
        self._scope = dict(scope)
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._replies: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Message:
        """Return the answer to the start, `lifespan.startup.complete` or `.failed`."""
        self._task = asyncio.create_task(self._run())
        return await self._send_event("lifespan.startup", self._task)

    async def stop(self) -> Message:
        """Return the answer to the end of the process."""
        return await self._send_event("lifespan.shutdown", cast(asyncio.Task[None], self._task))

    async def _run(self) -> None:
        await self._app(self._scope, self._events.get, self._replies.put)

    async def _send_event(self, event: str, task: asyncio.Task[None]) -> Message:
        await self._events.put({"type": event})
        answer = asyncio.create_task(self._replies.get())
        await asyncio.wait({answer, task}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() or not self._replies.empty():
            return await answer
        answer.cancel()
        task.result()
        raise RuntimeError(f"the application ended without an answer to {event}")


WEBHOOK_PREFIX: Final = "/api/v1/webhooks/"


class CombinedApp:
    """Hands the API and the page their paths, and the receiver all others; both live as long as the server."""

    def __init__(self, *, api: ASGIApp, receiver: ASGIApp) -> None:
        self._api = api
        self._receiver = receiver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the process."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
            return
        app = self._api if is_api_path(scope["path"]) else self._receiver
        await app(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start both, stop both; where one refuses to start, the other is stopped and the refusal passed on."""
        await receive()
        started: list[AppLifespan] = []
        for app in (self._receiver, self._api):
            life = AppLifespan(app, scope)
            answer = await life.start()
            if answer["type"] != "lifespan.startup.complete":
                await _stop_all(started)
                await send(answer)
                return
            started.append(life)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _stop_all(started)
        await send({"type": "lifespan.shutdown.complete"})


def is_api_path(path: str) -> bool:
    """Return whether a path is the API's or the page's; webhooks may come under /api/v1 too: the receiver's."""
    if path.startswith(WEBHOOK_PREFIX):
        return False
    if path == openapi.PATH or page.is_page_path(path):
        return True
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in routes.PREFIXES)


async def _stop_all(lifespans: list[AppLifespan]) -> None:
    for life in reversed(lifespans):
        await life.stop()


# By name: the receiver is a neighbour, which must not be imported from here.
app = CombinedApp(api=api.app, receiver=importlib.import_module("receiver.app").app)
