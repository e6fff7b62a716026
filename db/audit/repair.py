"""What a repair asks and writes by itself: it wakes rows that are due and free. Steps and sweeps do the rest."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from db.connection import Connection, fetch_one
from db.leases import SUBJECT
from moorage.model import Step, WorkTable

WAKE: Final[Mapping[WorkTable, str]] = {
    table: f"""
UPDATE {table} SET woken_at = NULL
 WHERE id = %(id)s AND run_at <= moment() AND lease_token IS NULL
RETURNING state
"""
    for table in SUBJECT
}

_STEPS: Final[Mapping[WorkTable, Step]] = {
    "deliveries": "ingest",
    "predictions": "poll",
    "outputs": "keep",
    "notices": "notify",
}
_STEPS_BY_STATE: Final[Mapping[str, Step]] = {"discarding": "discard", "planned": "submit", "submitting": "submit"}


def clear_wake(conn: Connection, table: WorkTable, row_id: UUID) -> Step | None:
    """Forget that a due row was ever woken and return the step that takes it; None when it is no longer due or free."""
    row = fetch_one(conn, WAKE[table], {"id": row_id})
    if row is None:
        return None
    return _STEPS_BY_STATE.get(row["state"], _STEPS[table])


HELD: Final[Mapping[WorkTable, str]] = {
    table: f"SELECT id FROM {table} WHERE id = %(id)s AND lease_token IS NOT NULL" for table in SUBJECT
}


def is_leased(conn: Connection, table: WorkTable, row_id: UUID) -> bool:
    """Return whether a worker holds a row, also under a lease that has ended."""
    return fetch_one(conn, HELD[table], {"id": row_id}) is not None


IS_DUE: Final = "SELECT id FROM jobs WHERE id = %(id)s AND run_at <= moment()"


def is_job_due(conn: Connection, job_id: UUID) -> bool:
    """Return whether a job is to be looked at by a sweep."""
    return fetch_one(conn, IS_DUE, {"id": job_id}) is not None
