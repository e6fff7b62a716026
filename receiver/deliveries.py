"""Records deliveries: one statement and one commit each, within a deadline."""

import asyncio
import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from db import sqlstates
from moorage import logs
from moorage.errors import DatabaseUnavailable
from moorage.failpoints import failpoint
from receiver.connection_pool import Connection, ConnectionPool

log = logs.get_logger(__name__)

RETRY_SECONDS: Final = 0.1  # pause before a failed insert is retried
# A longer id does not fit the unique index (2,704 bytes); no provider sends one.
MAX_WEBHOOK_ID_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class NewDelivery:
    id: UUID
    provider: str
    webhook_id: str
    headers: dict[str, str]
    body: bytes = field(repr=False)  # without the fields that the provider treats as secret
    body_sha256: str  # of the recorded body
    key_sha256: str | None = None  # of the key in the webhook URL


@dataclass(frozen=True, slots=True)
class RecordedDelivery:
    """The row of a webhook; `is_new` if this request inserted it, `is_pending` if it is not ingested yet."""

    id: UUID
    is_new: bool
    is_pending: bool


def choose_webhook_id(provider_id: str | None, body_sha256: str) -> str:
    """Return the unique id of a webhook: the provider's, else the digest of the body."""
    if provider_id is None:
        return f"sha256:{body_sha256}"
    if len(provider_id) > MAX_WEBHOOK_ID_CHARS:
        return f"id-sha256:{hashlib.sha256(provider_id.encode()).hexdigest()}"
    return provider_id


class DeliveryRecorder:
    def __init__(self, connections: ConnectionPool, *, answer_seconds: float) -> None:
        self._connections = connections
        self._answer_seconds = answer_seconds
        self._cancelled: set[asyncio.Task[RecordedDelivery]] = set()

    async def record(self, delivery: NewDelivery) -> RecordedDelivery:
        """Commit a delivery, or return the existing one. Raises DatabaseUnavailable: uncertain, a retry is safe."""
        task = asyncio.create_task(self._insert_until_committed(delivery))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._answer_seconds)
        finally:
            self._cancel(task)
        if not done:
            raise DatabaseUnavailable(f"PostgreSQL did not commit within {self._answer_seconds:g} s")
        return task.result()

    def _cancel(self, task: asyncio.Task[RecordedDelivery]) -> None:
        """Cancel an unfinished insert without waiting: an unresponsive server also delays the cancellation."""
        if not task.done():
            self._cancelled.add(task)  # the loop holds only a weak reference
            task.add_done_callback(self._on_cancelled)
            task.cancel()

    def _on_cancelled(self, task: asyncio.Task[RecordedDelivery]) -> None:
        self._cancelled.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("delivery.insert_cancelled", error=type(task.exception()).__name__)

    async def _insert_until_committed(self, delivery: NewDelivery) -> RecordedDelivery:
        """Insert, with retries over a new connection, until cancelled. The unique key makes retries safe."""
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._connections.acquire() as conn:
                    return await insert_delivery(conn, delivery)
            except (psycopg.Error, OSError) as error:  # OSError: no file descriptor is free
                if isinstance(error, psycopg.Error) and not _is_outage(error):
                    log.error("delivery.insert_rejected", delivery_id=delivery.id, error=str(error))
                    raise DatabaseUnavailable(f"PostgreSQL rejected the row: {type(error).__name__}") from error
                level = log.warning if attempt == 1 else log.debug
                level("delivery.insert_failed", delivery_id=delivery.id, attempt=attempt, error=type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)


def _is_outage(error: psycopg.Error) -> bool:
    return sqlstates.translate(error) is not None or error.sqlstate in sqlstates.REPEATED


INSERT = """
WITH inserted AS (
    INSERT INTO deliveries (id, provider, webhook_id, headers, body, body_sha256, key_sha256)
    VALUES (%(id)s, %(provider)s, %(webhook_id)s, %(headers)s, %(body)b, %(body_sha256)s, %(key_sha256)s)
    ON CONFLICT (provider, webhook_id) DO NOTHING
    RETURNING id, state
), event AS (
    INSERT INTO events (subject, subject_id, from_state, to_state, actor)
    SELECT 'delivery', id, NULL, state, 'receiver' FROM inserted
)
SELECT id, state FROM inserted
UNION ALL
SELECT id, state FROM deliveries WHERE provider = %(provider)s AND webhook_id = %(webhook_id)s
"""

FIND = "SELECT id, state FROM deliveries WHERE provider = %(provider)s AND webhook_id = %(webhook_id)s"


async def insert_delivery(conn: Connection, delivery: NewDelivery) -> RecordedDelivery:
    """
    Insert a delivery and its event in one statement; return the present row.

    Raises DatabaseUnavailable: the row of an equal webhook existed and then did not: the outcome is unknown.
    """
    failpoint("receive.before_commit")
    parameters = dataclasses.asdict(delivery) | {"headers": Jsonb(delivery.headers)}
    row = await (await conn.execute(INSERT, parameters)).fetchone()
    failpoint("receive.after_commit")
    if row is None:  # an equal webhook was committed concurrently: it is not in this statement's snapshot
        row = await (await conn.execute(FIND, parameters)).fetchone()
    if row is None:
        raise DatabaseUnavailable("the delivery disappeared while it was being recorded")
    return RecordedDelivery(row["id"], is_new=row["id"] == delivery.id, is_pending=row["state"] in ("new", "unmatched"))
