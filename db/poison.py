"""Poison: rows that reached the crash limit. They are ended as any leased row, without being claimed again."""

import uuid
from typing import Final
from uuid import UUID

from db.connection import Connection, fetch_one
from db.leases import IN_STATES, JOB_ID, UNPAUSED, WORK
from moorage.model import Lease, Step

# In the states of the step: a dead worker's prediction is woken for a poll, also if it is still to be submitted.
_CONDITION: Final = "id = %(id)s AND lease_token IS NULL AND run_at <= moment() AND crashes >= %(max_crashes)s"
_POISON: Final = {
    step: (table, f"{_CONDITION} AND {IN_STATES[step]} AND {UNPAUSED[table]}") for step, (table, _, _) in WORK.items()
}
LOCK_JOB: Final = {
    step: f"SELECT id FROM jobs WHERE id = (SELECT {JOB_ID[table]} FROM {table} WHERE {condition}) FOR UPDATE"
    for step, (table, condition) in _POISON.items()
}
LEASE: Final = {
    step: f"""
UPDATE {table} SET crashes = crashes + 1, lease_token = %(token)s, leased_by = %(leased_by)s, leased_until = moment()
 WHERE {condition}
RETURNING moment() AS claimed_at, attempt, crashes
"""
    for step, (table, condition) in _POISON.items()
}


def lease(conn: Connection, step: Step, row_id: UUID, *, leased_by: str, max_crashes: int) -> Lease | None:
    """Lock the job of a row that reached the crash limit; lease the row for the transaction that ends it."""
    token = uuid.uuid4()
    args = {"id": row_id, "token": token, "leased_by": leased_by, "max_crashes": max_crashes}
    conn.queue(LOCK_JOB[step], args)
    row = fetch_one(conn, LEASE[step], args)
    return Lease(WORK[step][0], row_id, token, leased_by, **row) if row else None
