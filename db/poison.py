"""Poison: rows that reached the crash limit. They are ended as any leased row, without being claimed again."""

import uuid
from typing import Final
from uuid import UUID

from db.connection import Connection, fetch_one
from db.leases import for_each
from moorage.model import Lease, WorkTable

_POISON: Final = (
    "id = %(id)s AND lease_token IS NULL AND run_at <= moment() AND crashes >= %(max_crashes)s AND {unpaused}"
)
LOCK_JOB = for_each(f"SELECT id FROM jobs WHERE id = (SELECT {{job}} FROM {{table}} WHERE {_POISON}) FOR UPDATE")
LEASE = for_each(f"""
UPDATE {{table}} SET crashes = crashes + 1, lease_token = %(token)s, leased_by = %(leased_by)s, leased_until = moment()
 WHERE {_POISON}
RETURNING moment() AS claimed_at, attempt, crashes
""")


def lease(conn: Connection, table: WorkTable, row_id: UUID, *, leased_by: str, max_crashes: int) -> Lease | None:
    """Lock the job of a row that reached the crash limit; lease the row for the transaction that ends it."""
    token = uuid.uuid4()
    args = {"id": row_id, "token": token, "leased_by": leased_by, "max_crashes": max_crashes}
    conn.queue(LOCK_JOB[table], args)
    row = fetch_one(conn, LEASE[table], args)
    return Lease(table, row_id, token, leased_by, **row) if row else None
