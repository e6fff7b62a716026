"""Queries of `moorage audit --repair` that are not part of a step or sweep."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from db.connection import Connection
from db.leases import STEP_BY_TABLE, for_each
from db.statements import statement
from moorage.model import Step, WorkTable

_STEPS_BY_STATE: Final[Mapping[str, Step]] = {"discarding": "discard", "planned": "submit", "submitting": "submit"}


@statement(
    for_each("""
UPDATE {table} SET woken_at = NULL WHERE id = %(row_id)s AND run_at <= moment() AND lease_token IS NULL RETURNING state
""")
)
def _clear_wake(conn: Connection, table: WorkTable, row_id: UUID) -> str | None: ...


def clear_wake(conn: Connection, table: WorkTable, row_id: UUID) -> Step | None:
    """Clear woken_at of a due, unleased row; return its step, or None if it is leased or not due."""
    state = _clear_wake(conn, table, row_id)
    return _STEPS_BY_STATE.get(state, STEP_BY_TABLE[table]) if state else None
