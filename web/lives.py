"""The lifespan of an application that another one contains."""

import asyncio
from typing import cast

from starlette.types import ASGIApp, Message, Scope


class Life:
    """Passes the server's two events on to one application and its answers back."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._app = app
        self._scope = dict(scope)
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Message:
        """Return the answer to the start, `lifespan.startup.complete` or `.failed`."""
        self._task = asyncio.create_task(self._run())
        return await self._ask("lifespan.startup", self._task)

    async def stop(self) -> Message:
        """Return the answer to the end of the process."""
        return await self._ask("lifespan.shutdown", cast(asyncio.Task[None], self._task))

    async def _run(self) -> None:
        await self._app(self._scope, self._events.get, self._answers.put)

    async def _ask(self, event: str, task: asyncio.Task[None]) -> Message:
        await self._events.put({"type": event})
        answer = asyncio.create_task(self._answers.get())
        await asyncio.wait({answer, task}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() or not self._answers.empty():
            return await answer
        answer.cancel()
        task.result()
        raise RuntimeError(f"the application ended without an answer to {event}")
