"""Questions about a row of any work table."""

from collections.abc import Sequence
from uuid import UUID

from db.connect import Connection, one
from db.leases import SUBJECT
from moorage.model import WorkTable

IS_LIVE = {table: f"SELECT id FROM {table} WHERE id = %(id)s AND state = ANY(%(states)s::text[])" for table in SUBJECT}


def is_live(conn: Connection, table: WorkTable, row_id: UUID, states: Sequence[str]) -> bool:
    """Return whether there is such a row, in one of the states."""
    return one(conn, IS_LIVE[table], {"id": row_id, "states": list(states)}) is not None
