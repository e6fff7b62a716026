"""
Records deliveries by group commit: requests that arrive while a batch is on its way share the next one.

A batch is repeated over new connections until it is committed or the deadlines of all its requests have passed; the
unique key makes that safe. After an error that may be one row's alone its rows are repeated one by one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import psycopg

from db import sqlstates
from moorage import logs
from moorage.errors import DatabaseUnavailable
from receiver.connection_pool import ConnectionPool
from receiver.deliveries import NewDelivery, RecordedDelivery, insert_deliveries

log = logs.get_logger(__name__)

MAX_BATCHES: Final = 2  # in flight: the second when the first is slow, or when MAX_ROWS wait
SLOW_SECONDS: Final = 0.02
MAX_ROWS: Final = 128
MAX_BYTES: Final = 4 << 20  # of bodies in a batch of several: a small webhook does not wait for many large ones
RETRY_SECONDS: Final = 0.1  # pause before a failed batch is repeated
REFUSAL_SECONDS: Final = 1.0
REFUSAL_STATUSES: Final = (401, 404)  # a wrong signature, or a provider without a secret


class RecordRequest(NamedTuple):
    """A delivery to record, and who waits for it: the result is an error once the deadline has passed."""

    delivery: NewDelivery
    deadline: float  # of the loop's clock
    result: asyncio.Future[RecordedDelivery]


class DeliveryRecorder:
    def __init__(self, connections: ConnectionPool, *, answer_seconds: float) -> None:
        self._connections = connections
        self._answer_seconds = answer_seconds
        self._waiting: deque[RecordRequest] = deque()
        self._senders = self._slow_batches = 0
        self._tasks: set[asyncio.Task[None]] = set()  # senders, and batches that are given up: the loop refers weakly

    async def record(self, delivery: NewDelivery) -> RecordedDelivery:
        """Commit a delivery, or return the existing one. Raises DatabaseUnavailable: uncertain, a retry is safe."""
        loop = asyncio.get_running_loop()
        request = RecordRequest(delivery, loop.time() + self._answer_seconds, loop.create_future())
        self._waiting.append(request)
        self._start_sender()
        timer = loop.call_at(request.deadline, self._expire, request)
        try:
            return await request.result
        finally:
            timer.cancel()

    def _expire(self, request: RecordRequest) -> None:
        if not request.result.done():
            late = DatabaseUnavailable(f"PostgreSQL did not commit within {self._answer_seconds:g} s")
            request.result.set_exception(late)

    def _start_sender(self) -> None:
        if self._senders < (MAX_BATCHES if self._slow_batches or len(self._waiting) >= MAX_ROWS else 1):
            self._senders += 1
            sender = asyncio.create_task(self._send_batches())  # it starts after those that arrived with this one
            self._tasks.add(sender)
            sender.add_done_callback(self._tasks.discard)

    async def _send_batches(self) -> None:
        """Commit batches until no request waits. One whose requests have all been answered is given up."""
        try:
            while batch := self._take_batch():
                await self._send_batch(batch)
        finally:
            self._senders -= 1  # in the turn that found none waiting: the next request starts another sender

    async def _send_batch(self, batch: list[RecordRequest]) -> None:
        task = asyncio.create_task(self._insert_until_committed(batch))
        self._tasks.add(task)
        task.add_done_callback(self._forget_batch)
        await asyncio.wait({task}, timeout=SLOW_SECONDS)
        if not task.done():
            self._slow_batches += 1
            self._start_sender()
            await asyncio.wait({task}, timeout=max(0.0, batch[-1].deadline - asyncio.get_running_loop().time()))
            self._slow_batches -= 1
        if not task.done():
            task.cancel()  # without waiting: an unresponsive server also delays the cancellation
        elif error := task.exception():
            for request in _list_unanswered(batch):
                request.result.set_exception(error)

    def _take_batch(self) -> list[RecordRequest]:
        batch: list[RecordRequest] = []
        size = 0
        while self._waiting and len(batch) < MAX_ROWS:
            size += len(self._waiting[0].delivery.body)
            if batch and size > MAX_BYTES:
                break
            request = self._waiting.popleft()
            if not request.result.done():
                batch.append(request)
        return batch

    def _forget_batch(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("batch.failed", error=type(task.exception()).__name__)

    async def _insert_until_committed(self, batch: list[RecordRequest]) -> None:
        await self._insert(batch, log.warning)
        while batch := _list_unanswered(batch):
            await asyncio.sleep(RETRY_SECONDS)
            await self._insert(batch, log.debug)

    async def _insert(self, batch: Sequence[RecordRequest], log_failure: Callable[..., None]) -> None:
        """Try to commit a batch, after an error row by row; a request whose outcome is open stays unanswered."""
        try:
            async with self._connections.acquire() as conn:
                recorded = await insert_deliveries(conn, [request.delivery for request in batch])
        except (psycopg.Error, OSError) as error:  # OSError: no file descriptor is free
            log_failure("deliveries.insert_failed", rows=len(batch), error=type(error).__name__)
            if len(batch) > 1 and not _is_connection_lost(error):
                for request in batch:
                    if not request.result.done():
                        await self._insert([request], log.debug)
            elif len(batch) == 1 and _is_refusal(error):
                _refuse(batch[0], error)
            return
        for request in _list_unanswered(batch):
            if row := recorded.get(request.delivery.id):
                request.result.set_result(row)
            else:
                request.result.set_exception(DatabaseUnavailable("the delivery disappeared while it was recorded"))
        new, size = sum(row.is_new for row in recorded.values()), sum(len(x.delivery.body) for x in batch)
        log.info("deliveries.recorded", new=new, known=len(recorded) - new, bytes=size)


def _list_unanswered(batch: Sequence[RecordRequest]) -> list[RecordRequest]:
    return [request for request in batch if not request.result.done()]


def _refuse(request: RecordRequest, error: BaseException) -> None:
    delivery = request.delivery
    log.error("delivery.insert_rejected", delivery_id=delivery.id, provider=delivery.provider, error=str(error))
    if not request.result.done():
        request.result.set_exception(DatabaseUnavailable(f"PostgreSQL rejected the row: {type(error).__name__}"))


def _is_connection_lost(error: BaseException) -> bool:
    """Return True if no server answered: repeating each row alone would wait for a connection each time."""
    return isinstance(error, OSError) or sqlstates.is_connection_lost(error)


def _is_refusal(error: BaseException) -> bool:
    """Return True for an error about the row, which no repetition avoids."""
    if not isinstance(error, psycopg.Error):
        return False
    return sqlstates.translate(error) is None and error.sqlstate not in sqlstates.REPEATED


# Those since the last accepted delivery, unless ten minutes passed between two of them.
RECORD_REFUSALS: Final = """
INSERT INTO webhook_refusals AS r (provider, value, reason) VALUES (%(provider)s, %(value)s, %(reason)s)
ON CONFLICT (provider) DO UPDATE SET last_at = moment(), reason = excluded.reason,
       value = excluded.value + CASE WHEN r.last_at > moment() - interval '10 min'
            AND NOT EXISTS (SELECT FROM deliveries d WHERE d.provider = r.provider AND d.received_at > r.last_at)
            THEN r.value ELSE 0 END
"""


class RefusalRecorder:
    """Records whose webhooks are refused, so that operators see a wrong secret: one write a second at most."""

    def __init__(self, connections: ConnectionPool) -> None:
        self._connections = connections
        self._refused: dict[str, tuple[int, str]] = {}  # number and last reason by provider
        self._task: asyncio.Task[None] | None = None

    def add(self, provider: str, reason: str) -> None:
        """Count a refusal of a provider that exists; it is written within a second; metrics count it in any case."""
        self._refused[provider] = (self._refused.get(provider, (0, ""))[0] + 1, reason)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_later())

    async def _write_later(self) -> None:
        while self._refused:  # also what is added during a write
            await asyncio.sleep(REFUSAL_SECONDS)
            refused, self._refused = self._refused, {}
            try:
                async with self._connections.acquire() as conn:
                    for provider, (value, reason) in refused.items():
                        await conn.execute(RECORD_REFUSALS, {"provider": provider, "value": value, "reason": reason})
            except (psycopg.Error, OSError) as error:
                log.warning("refusals.not_recorded", error=str(error))
