"""Queries of `moorage audit --repair` that are not part of a step or sweep."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from db.connection import Connection, fetch_one
from db.leases import STEP_BY_TABLE, SUBJECT
from db.statements import statement
from moorage.model import Step, WorkTable

CLEAR_WAKE: Final[Mapping[WorkTable, str]] = {
    table: f"""
UPDATE {table} SET woken_at = NULL WHERE id = %(id)s AND run_at <= moment() AND lease_token IS NULL
RETURNING state"""
    for table in SUBJECT
}

_STEPS_BY_STATE: Final[Mapping[str, Step]] = {"discarding": "discard", "planned": "submit", "submitting": "submit"}


def clear_wake(conn: Connection, table: WorkTable, row_id: UUID) -> Step | None:
    """Clear woken_at of a due, unleased row; return its step, or None if it is leased or not due."""
    row = fetch_one(conn, CLEAR_WAKE[table], {"id": row_id})
    if row is None:
        return None
    return _STEPS_BY_STATE.get(row["state"], STEP_BY_TABLE[table])


IS_LEASED: Final[Mapping[WorkTable, str]] = {
    table: f"SELECT id FROM {table} WHERE id = %(id)s AND lease_token IS NOT NULL" for table in SUBJECT
}


def is_leased(conn: Connection, table: WorkTable, row_id: UUID) -> bool:
    return fetch_one(conn, IS_LEASED[table], {"id": row_id}) is not None


@statement("SELECT id FROM jobs WHERE id = %(job_id)s AND run_at <= moment()")
def is_job_due(conn: Connection, job_id: UUID) -> bool: ...
