"""One ASGI application with the API, the page and the receiver: `granian --interface asgi --workers 1 web.asgi:app`."""

import asyncio
import gc
import importlib
import os
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

import providers
from moorage import logs
from moorage import settings as settings_module
from web import app as api
from web import routes
from web.page.views import is_page_path

log = logs.get_logger(__name__)

WEBHOOK_PREFIXES: Final = ("/webhooks/", "/api/v1/webhooks/")


class AppLifespan:
    """Forwards the server's two lifespan events to one application and returns its replies."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._replies: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.ensure_future(app(dict(scope), self._events.get, self._replies.put))

    async def send(self, event: str) -> Message:
        """Return the reply to an event; raises what the application raised."""
        await self._events.put({"type": event})
        reply = asyncio.create_task(self._replies.get())
        await asyncio.wait({reply, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if reply.done() or not self._replies.empty():
            return await reply
        reply.cancel()
        self._task.result()
        raise RuntimeError(f"the application ended without a reply to {event}")


class CombinedApp:
    """Routes requests to the API with the page, or to the receiver; both share the server's lifespan."""

    def __init__(self, *, api: ASGIApp, receiver: ASGIApp, on_started: Callable[[], None] = lambda: None) -> None:
        self._api = api
        self._receiver = receiver
        self._on_started = on_started

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._run_lifespan(scope, receive, send)
        app = self._api if is_api_path(scope["path"]) else self._receiver
        return app(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start both and stop both. If one fails to start, stop the other and forward the failure."""
        await receive()
        started: list[AppLifespan] = []
        for app in (self._receiver, self._api):
            lifespan = AppLifespan(app, scope)
            reply = await lifespan.send("lifespan.startup")
            if reply["type"] != "lifespan.startup.complete":
                break
            started.append(lifespan)
        else:
            gc.freeze()  # what the API loaded would be visited by every full collection while webhooks arrive
            gc.set_threshold(20_000, 10, 10)  # at 700 objects, requests in flight are visited again and again
            await send(reply)
            self._on_started()
            await receive()
            reply = {"type": "lifespan.shutdown.complete"}
        for lifespan in reversed(started):
            await lifespan.send("lifespan.shutdown")
        await send(reply)


def _log_listening() -> None:
    settings = settings_module.get_settings()
    enabled = sorted(name for name, provider in providers.load(settings).items() if provider.is_enabled)
    log.info(
        "receiver.listening",
        host=os.environ.get("GRANIAN_HOST", "unknown"),
        port=os.environ.get("GRANIAN_PORT", "unknown"),
        providers=",".join(enabled) or "none",
        api="open" if settings.api_token else "closed: set MOORAGE_API_TOKEN",
    )


def is_api_path(path: str) -> bool:
    """Return True for paths of the API and the page. Webhooks below /api/v1 belong to the receiver."""
    if path.startswith(WEBHOOK_PREFIXES):
        return False
    if path in api.PUBLIC_PATHS or is_page_path(path):
        return True
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in routes.PREFIXES)


# By name: packages on one level do not import each other.
app = CombinedApp(api=api.app, receiver=importlib.import_module("receiver.app").app, on_started=_log_listening)
