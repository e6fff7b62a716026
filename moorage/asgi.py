"""An ASGI application that is built when its server starts, not when its module is imported."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from moorage.errors import ConfigError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class LazyApp:
    """An ASGI application built from the settings at lifespan startup."""

    def __init__(self, build_app: Callable[[], App]) -> None:
        self._make = build_app
        self._app: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or the lifespan; a ConfigError fails the startup."""
        if scope["type"] == "lifespan":
            try:
                self._app = self._make()
            except ConfigError as error:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        if self._app is None:
            raise RuntimeError("lifespan was not started: run the server with --interface asgi")
        await self._app(scope, receive, send)
