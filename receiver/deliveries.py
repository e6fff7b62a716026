"""The rows of webhooks: a batch of them is one statement and one commit."""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple
from uuid import UUID

import psycopg

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
    SELECT * FROM unnest(%(id)b::uuid[], %(provider)b::text[], %(webhook_id)b::text[], %(headers)b::jsonb[],
                         %(body)b::bytea[], %(body_sha256)b::text[], %(key_sha256)b::text[])
    ON CONFLICT (provider, webhook_id) DO NOTHING
    RETURNING id, state
)
INSERT INTO events (subject, subject_id, from_state, to_state, actor)
SELECT 'delivery', id, NULL, state, 'receiver' FROM inserted
"""

FIND = """
SELECT id, provider, webhook_id, state FROM deliveries
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
    recorded = {}
    for item in batch:
        if row := by_key.get((item.provider, item.webhook_id)):
            is_new = row["id"] == item.id  # inserted now, or by an attempt whose outcome was unknown
            is_pending = row["state"] in ("new", "unmatched")
            recorded[item.id] = RecordedDelivery(row["id"], is_new=is_new, is_pending=is_pending)
    return recorded


class PackedArray(bytes):
    """An array in the binary format of PostgreSQL."""


class _PackedArrayDumper(psycopg.adapt.Dumper):
    format = psycopg.pq.Format.BINARY  # and no oid: the statement casts the parameter

    def dump(self, obj: PackedArray) -> PackedArray:
        return obj


psycopg.adapters.register_dumper(PackedArray, _PackedArrayDumper)
_ARRAY_HEADER: Final = struct.Struct("!iiIii")  # dimensions, 1 with a NULL, oid of the elements, length, first index
_pack_length: Final = struct.Struct("!i").pack


def build_arguments(batch: Sequence[NewDelivery]) -> dict[str, PackedArray]:
    """Return the arguments of INSERT, in the order of the unique key: in any other, two batches could deadlock."""
    rows = sorted(batch, key=attrgetter("provider", "webhook_id"))
    return {
        "id": _pack_array("uuid", [row.id.bytes for row in rows]),
        "provider": _pack_array("text", [row.provider.encode() for row in rows]),
        "webhook_id": _pack_array("text", [row.webhook_id.encode() for row in rows]),
        "headers": _pack_array("jsonb", [b"\1" + json.dumps(row.headers).encode() for row in rows]),  # version 1
        "body": _pack_array("bytea", [row.body for row in rows]),
        "body_sha256": _pack_array("text", [row.body_sha256.encode() for row in rows]),
        "key_sha256": _pack_array("text", [row.key_sha256.encode() if row.key_sha256 else None for row in rows]),
    }


def _pack_array(element: str, values: Sequence[bytes | None]) -> PackedArray:
    """Pack an array here: psycopg looks up how to adapt each element, which takes half of the time of a batch."""
    header = _ARRAY_HEADER.pack(1, None in values, psycopg.postgres.types[element].oid, len(values), 1)
    return PackedArray(header + b"".join([_pack_length(-1) if x is None else _pack_length(len(x)) + x for x in values]))
