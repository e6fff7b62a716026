"""The events of all jobs as they become final: one read of PostgreSQL a second, shared by every stream."""

import asyncio
from collections import deque
from typing import Final

from db import events
from db.connection import Connection, Database, Row
from db.events import Watermark
from moorage import logs
from web.http.problems import Problem, unavailable
from web.services.database import DatabaseThreads

log = logs.get_logger(__name__)

MAX_STREAMS: Final = 100
MAX_STREAMS_PER_OWNER: Final = 10  # so that one owner's pages do not take the place of all others'
MAX_BUFFERED: Final = 1000  # events in one stream's buffer; a reader that is slower is cut, and resumes
POLL_SECONDS: Final = 1.0
FIRST_POLL_SECONDS: Final = 0.05
START_TIMEOUT_SECONDS: Final = 4.0


class Subscription:
    """One stream's place in the feed."""

    def __init__(self, owner: str | None) -> None:
        self.owner: Final = owner  # None: it is told of all
        self.is_ended = False
        self._buffer: deque[Row] = deque()
        self._changed = asyncio.Event()

    def offer(self, row: Row) -> None:
        """Put an event that is this reader's into its buffer, or end the stream where that is full."""
        if self.is_ended or self.owner not in (None, row["owner"]):
            return
        if len(self._buffer) >= MAX_BUFFERED:
            self.end()
        else:
            self._buffer.append(row)
            self._changed.set()

    def end(self) -> None:
        """Have the stream end after what is in its buffer."""
        self.is_ended = True
        self._changed.set()

    async def next(self, seconds: float) -> Row | None:
        """Return the next event; None when there is none for so long, or the stream is over."""
        if not self._buffer and not self.is_ended:
            self._changed.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass  # one may have come in this very moment: look before saying that there is none
        return self._buffer.popleft() if self._buffer else None


class EventFeed:
    """Reads while anybody listens. `position` is the id up to which every reader was offered all events."""

    def __init__(self, threads: DatabaseThreads) -> None:
        self.position = 0
        self._database = threads
        self._subscriptions: set[Subscription] = set()
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._mark: Watermark | None = None
        self._is_closed = False

    async def subscribe(self, owner: str | None) -> Subscription:
        """
        Return a reader that is offered every event of an owner, or all, behind `position`; `leave` it at the end.

        Raises:
            Problem: 503 when too many listen, at the end of the process, and when PostgreSQL does not answer.
        """
        of_owner = sum(1 for reader in self._subscriptions if reader.owner == owner)
        if (
            self._is_closed
            or len(self._subscriptions) >= MAX_STREAMS
            or (owner is not None and of_owner >= MAX_STREAMS_PER_OWNER)
        ):
            raise unavailable("too many streams are open: try again")
        reader = Subscription(owner)
        self._subscriptions.add(reader)
        self._start()
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await self._started.wait()
        except TimeoutError as error:
            raise unavailable("the events cannot be read now: try again") from error
        finally:
            if not self._started.is_set():
                self.unsubscribe(reader)
        return reader

    def unsubscribe(self, reader: Subscription) -> None:
        """Forget a reader; with the last of them reading stops."""
        self._subscriptions.discard(reader)
        if not self._subscriptions and self._task is not None:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        """End every stream, and take no new one."""
        self._is_closed = True
        for reader in self._subscriptions:
            reader.end()

    def _start(self) -> None:
        if self._task is None:
            self._started.clear()
            self._mark = None
            self._task = asyncio.create_task(self._poll_forever())
            self._task.add_done_callback(self._on_task_done)

    async def _poll_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._poll()
            except Problem as away:
                log.warning("feed.behind", reason=away.detail)
            pause = POLL_SECONDS if self._started.is_set() else FIRST_POLL_SECONDS
            await asyncio.sleep(max(0.0, began + pause - loop.time()))

    async def _poll(self) -> None:
        """Offer what has become final; at the start only find out up to where that is."""
        until = await self._database.run(self._find_final_id)
        if until is None:
            return
        if not self._started.is_set():
            self.position = until
            self._started.set()
        while self.position < until:
            await self._offer_page(min(until, self.position + events.MAX_ID_SPAN))

    async def _offer_page(self, until: int) -> None:
        after = self.position
        rows = await self._database.run(
            lambda database: database.run(lambda conn: events.list_between(conn, after, until)),
        )
        for row in rows:
            for reader in self._subscriptions:
                reader.offer(row)
        self.position = until  # in one step with the offers: an empty buffer means that all up to here was sent

    def _find_final_id(self, database: Database) -> int | None:
        """Return the id up to which all events are final; None while a transaction of the last mark still runs."""

        def look(conn: Connection) -> int | None:
            mark = self._mark or events.read_watermark(conn)
            if not events.is_final(conn, mark):
                self._mark = mark
                return None
            self._mark = None
            return mark.event_id

        return database.run(look)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """End every stream where the reading broke: a stream that only seems alive is worse than none."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("feed.failed", error=f"{type(error).__name__}: {error}")
            self._task = None
            for reader in self._subscriptions:
                reader.end()
