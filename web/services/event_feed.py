"""Publishes committed events to all streams: PostgreSQL is polled once a second for all of them."""

import asyncio
from collections import deque
from typing import Final

from db import events
from db.connection import Connection, Row
from db.events import Watermark
from moorage import logs
from web.http.problems import Problem, unavailable
from web.services.database import DatabaseThreads

log = logs.get_logger(__name__)

MAX_STREAMS: Final = 100
MAX_STREAMS_PER_OWNER: Final = 10  # so that the pages of one owner do not exhaust MAX_STREAMS
MAX_BUFFERED: Final = 1000  # events in one stream's buffer; a slower client is disconnected, and resumes
POLL_SECONDS: Final = 1.0
FIRST_POLL_SECONDS: Final = 0.05
START_TIMEOUT_SECONDS: Final = 4.0


class Subscription:
    def __init__(self, owner: str | None) -> None:
        self.owner: Final = owner  # None: events of all owners
        self.is_ended = False
        self._buffer: deque[Row] = deque()
        self._changed = asyncio.Event()

    def offer(self, row: Row) -> None:
        """Buffer an event of the subscription's owner; end the stream if the buffer is full."""
        if self.is_ended or self.owner not in (None, row["owner"]):
            return
        if len(self._buffer) >= MAX_BUFFERED:
            self.end()
        else:
            self._buffer.append(row)
            self._changed.set()

    def end(self) -> None:
        """End the stream after the events in its buffer."""
        self.is_ended = True
        self._changed.set()

    async def next(self, seconds: float) -> Row | None:
        """Return the next event; None after `seconds` without one, or at the end of the stream."""
        if not self._buffer and not self.is_ended:
            self._changed.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass  # an event may have arrived at the same moment: check the buffer
        return self._buffer.popleft() if self._buffer else None


class EventFeed:
    """Polls while there are subscriptions. All events up to id `position` have been offered to every subscription."""

    def __init__(self, database: DatabaseThreads) -> None:
        self.position = 0
        self._database = database
        self._subscriptions: set[Subscription] = set()
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._watermark: Watermark | None = None
        self.is_closed = False

    async def subscribe(self, owner: str | None) -> Subscription:
        """Subscribe to the events after `position` of an owner, or all. Raises Problem: 503 at the limits or closed."""
        of_owner = sum(1 for subscription in self._subscriptions if subscription.owner == owner)
        is_owner_full = owner is not None and of_owner >= MAX_STREAMS_PER_OWNER
        if self.is_closed or len(self._subscriptions) >= MAX_STREAMS or is_owner_full:
            raise unavailable("too many open streams, retry")
        subscription = Subscription(owner)
        self._subscriptions.add(subscription)
        self._start()
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await self._started.wait()
        except TimeoutError as error:
            raise unavailable("events are unavailable, retry") from error
        finally:
            if not self._started.is_set():
                self.unsubscribe(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._subscriptions and self._task is not None:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        self.is_closed = True
        self._end_all()

    def _end_all(self) -> None:
        for subscription in self._subscriptions:
            subscription.end()

    def _start(self) -> None:
        if self._task is None:
            self._started.clear()
            self._watermark = None
            self._task = asyncio.create_task(self._poll_forever())
            self._task.add_done_callback(self._on_task_done)

    async def _poll_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            try:
                await self._poll()
            except Problem as problem:
                log.warning("feed.behind", reason=problem.detail)
            pause = POLL_SECONDS if self._started.is_set() else FIRST_POLL_SECONDS
            await asyncio.sleep(max(0.0, started_at + pause - loop.time()))

    async def _poll(self) -> None:
        """Offer the events that have become final; the first poll only determines the position."""
        final_id = await self._database.transaction(self._find_final_id)
        if final_id is None:
            return
        if not self._started.is_set():
            self.position = final_id
            self._started.set()
        while self.position < final_id:
            await self._offer_page(min(final_id, self.position + events.MAX_ID_SPAN))

    async def _offer_page(self, until: int) -> None:
        after = self.position
        rows = await self._database.transaction(lambda conn: events.list_between(conn, after, until))
        for row in rows:
            for subscription in self._subscriptions:
                subscription.offer(row)
        self.position = until  # no await since the offers: an empty buffer means that all events up to here were sent

    def _find_final_id(self, conn: Connection) -> int | None:
        """Return the id up to which all events are final; None while a transaction of the watermark still runs."""
        watermark = self._watermark or events.read_watermark(conn)
        if not events.is_final(conn, watermark):
            self._watermark = watermark
            return None
        self._watermark = None
        return watermark.event_id

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """End every stream if polling failed, so that clients reconnect instead of waiting on a dead stream."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("feed.failed", error=f"{type(error).__name__}: {error}")
            self._task = None
            self._end_all()
