"""The rows of webhooks: a batch of them is one statement and one commit."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from moorage.failpoints import failpoint
from receiver.connection_pool import Connection

# A longer id does not fit the unique index (2,704 bytes); no provider sends one.
MAX_WEBHOOK_ID_CHARS: Final = 500


@dataclass(slots=True, eq=False)  # not frozen: that takes a microsecond of each webhook
class NewDelivery:
    id: UUID
    provider: str
    webhook_id: str
    headers: dict[str, str]
    body: bytes = field(repr=False)  # without the fields that the provider treats as secret
    body_sha256: str  # of the recorded body
    key_sha256: str | None = None  # of the key in the webhook URL


class RecordedDelivery(NamedTuple):
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


INSERT = """
WITH inserted AS (
    INSERT INTO deliveries (id, provider, webhook_id, headers, body, body_sha256, key_sha256)
    SELECT id, provider, webhook_id, headers, body, body_sha256, key_sha256 FROM ROWS FROM (
        json_to_recordset(%(rows)s::json)
            AS (id uuid, provider text, webhook_id text, headers jsonb, body_sha256 text, key_sha256 text),
        unnest(%(bodies)b::bytea[])
    ) AS new (id, provider, webhook_id, headers, body_sha256, key_sha256, body)
    ON CONFLICT (provider, webhook_id) DO NOTHING
    RETURNING id, state
)
INSERT INTO events (subject, subject_id, from_state, to_state, actor)
SELECT 'delivery', id, NULL, state, 'receiver' FROM inserted
"""

FIND = """
SELECT id, provider, webhook_id, state IN ('new', 'unmatched') AS is_pending FROM deliveries
  JOIN unnest(%(provider)b::text[], %(webhook_id)b::text[]) AS known (provider, webhook_id)
 USING (provider, webhook_id)
"""


async def insert_deliveries(conn: Connection, batch: Sequence[NewDelivery]) -> dict[UUID, RecordedDelivery]:
    """
    Insert deliveries and their events in one statement; return the present row of each by its new id.

    A delivery without one: the row of an equal webhook existed and then did not: the outcome is unknown.
    """
    failpoint("receive.before_commit")
    inserted = (await conn.execute(INSERT, build_arguments(batch))).rowcount
    failpoint("receive.after_commit")
    if inserted == len(batch):
        return {item.id: RecordedDelivery(item.id, is_new=True, is_pending=True) for item in batch}
    # A statement of its own: what another transaction committed meanwhile is not in the snapshot of the first.
    keys = {"provider": [item.provider for item in batch], "webhook_id": [item.webhook_id for item in batch]}
    rows = await (await conn.execute(FIND, keys)).fetchall()
    by_key = {(row["provider"], row["webhook_id"]): row for row in rows}
    known = [(item.id, by_key.get((item.provider, item.webhook_id))) for item in batch]
    # New: inserted now, or by an attempt whose outcome was unknown.
    return {id_: RecordedDelivery(row["id"], row["id"] == id_, row["is_pending"]) for id_, row in known if row}


def build_arguments(batch: Sequence[NewDelivery]) -> dict[str, Any]:
    """Return the arguments of INSERT, in the order of the unique key: in any other, two batches could deadlock."""
    rows = sorted(batch, key=attrgetter("provider", "webhook_id"))
    # One document: psycopg looks up how to adapt each element of an array, which took half of the time of a batch.
    names = ("provider", "webhook_id", "headers", "body_sha256", "key_sha256")
    values = [{"id": str(row.id), **{name: getattr(row, name) for name in names}} for row in rows]
    return {"rows": json.dumps(values), "bodies": [row.body for row in rows]}
