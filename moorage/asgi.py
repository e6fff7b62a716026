"""An ASGI application that is made when its server starts it, not when it is imported: settings are read then."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from moorage.errors import ConfigError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class LazyApp:
    """The application of this process."""

    def __init__(self, build_app: Callable[[], App]) -> None:
        self._make = build_app
        self._app: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the process; a wrong setting ends the start."""
        if scope["type"] == "lifespan":
            try:
                self._app = self._make()
            except ConfigError as error:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        if self._app is None:
            raise RuntimeError("the server did not start the lifespan: run it with --interface asgi")
        await self._app(scope, receive, send)
