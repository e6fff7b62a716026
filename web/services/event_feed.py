"""Publishes committed events to all streams: PostgreSQL is polled once a second for all of them."""

import asyncio
import resource
import sys
from collections import deque
from typing import Final
from uuid import UUID

from db import api_tokens, events, owner_token_revocations
from db.connection import Connection, Row
from db.events import Watermark
from moorage import logs
from moorage.owner_tokens import OwnerToken
from web.http.problems import Problem, unavailable
from web.services.database import DatabaseThreads

log = logs.get_logger(__name__)

MAX_STREAMS_PER_OWNER: Final = 10
FILES_WITHOUT_STREAMS: Final = 1500  # of connections of webhooks and requests (1,024), and our own
MAX_BUFFERED: Final = 1000  # events in one stream's buffer; a slower client is disconnected, and resumes
POLL_SECONDS: Final = 1.0
FIRST_POLL_SECONDS: Final = 0.05
START_TIMEOUT_SECONDS: Final = 4.0


def limit_to_files(max_streams: int) -> int:
    """Raise the limit of open files of this process as far as allowed; return how many streams that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    wanted = min(files, max(soft, max_streams + FILES_WITHOUT_STREAMS))
    if wanted > soft >= 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = min(max_streams, files - min(FILES_WITHOUT_STREAMS, files // 2))
    if limit < max_streams:
        log.warning("streams.limited", streams=limit, max_streams=max_streams, open_files=files)
    return limit


class Subscription:
    def __init__(self, owner: str | None, token: OwnerToken | None = None, api_token_id: UUID | None = None) -> None:
        self.owner: Final = owner  # None: events of all owners
        self.token: Final = token  # the stream ends when it is revoked
        self.api_token_id: Final = api_token_id  # as well
        self.is_ended = False
        self._buffer: deque[Row] = deque()
        self._changed = asyncio.Event()

    def offer(self, row: Row) -> None:
        """Buffer an event; end the stream if the buffer is full."""
        if self.is_ended:
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

    def __init__(self, database: DatabaseThreads, max_streams: int) -> None:
        self.position = 0
        self._database = database
        self._max_streams = max_streams
        self._by_owner: dict[str | None, dict[Subscription, None]] = {}  # in the order of their start
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._watermark: Watermark | None = None
        self.is_closed = False

    async def subscribe(
        self, owner: str | None, token: OwnerToken | None = None, api_token_id: UUID | None = None
    ) -> Subscription:
        """Subscribe to the events after `position` of an owner, or all. Raises Problem: 503 at the limits or closed."""
        is_owner_full = owner is not None and len(self._by_owner.get(owner, ())) >= MAX_STREAMS_PER_OWNER
        is_full = len(self._list_subscriptions()) >= self._max_streams
        if self.is_closed or is_owner_full or (is_full and not self._make_room(owner)):
            raise unavailable("too many open streams, retry")
        subscription = Subscription(owner, token, api_token_id)
        self._by_owner.setdefault(owner, {})[subscription] = None
        if self._task is None:
            self._started.clear()
            self._watermark = None
            self._task = asyncio.create_task(self._poll_forever())
            self._task.add_done_callback(self._on_task_done)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await self._started.wait()
        except BaseException as error:  # whether or not polling has started at this moment
            self.unsubscribe(subscription)
            if isinstance(error, TimeoutError):
                raise unavailable("events are unavailable, retry") from error
            raise
        return subscription

    def _make_room(self, owner: str | None) -> bool:
        """End the oldest stream of the owner that has most, if it has at least two more; return False otherwise."""
        streams = max(self._by_owner.values(), key=len)
        if len(streams) < len(self._by_owner.get(owner, ())) + 2:
            return False
        oldest = next(iter(streams))
        oldest.end()
        self.unsubscribe(oldest)
        return True

    def unsubscribe(self, subscription: Subscription) -> None:
        streams = self._by_owner.get(subscription.owner, {})
        streams.pop(subscription, None)
        if not streams:
            self._by_owner.pop(subscription.owner, None)
        if not self._by_owner and self._task is not None:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        self.is_closed = True
        self._end_all()

    def _end_all(self) -> None:
        for subscription in self._list_subscriptions():
            subscription.end()

    def _list_subscriptions(self) -> list[Subscription]:
        return [subscription for streams in self._by_owner.values() for subscription in streams]

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
        await self._end_revoked()

    async def _offer_page(self, until: int) -> None:
        after = self.position
        rows = await self._database.transaction(lambda conn: events.list_between(conn, after, until))
        for row in rows:
            for owner in {None, row["owner"]}:
                for subscription in self._by_owner.get(owner, ()):
                    subscription.offer(row)
        self.position = until  # no await since the offers: an empty buffer means that all events up to here were sent

    async def _end_revoked(self) -> None:
        """End the streams whose tokens are revoked; one read for all of them."""
        held = self._list_subscriptions()
        tokens = [subscription.token for subscription in held if subscription.token]
        api_ids = list({subscription.api_token_id for subscription in held if subscription.api_token_id})
        if not tokens and not api_ids:
            return
        revoked, active = await self._database.transaction(
            lambda conn: (owner_token_revocations.find(conn, tokens), api_tokens.filter_active(conn, api_ids))
        )
        for subscription in held:
            is_revoked = subscription.token is not None and subscription.token.is_revoked(revoked)
            if is_revoked or subscription.api_token_id not in {None, *active}:
                subscription.end()

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
