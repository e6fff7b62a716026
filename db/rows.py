"""Questions about a row of any work table."""

from uuid import UUID

from db.connect import Connection, one
from db.leases import SUBJECT
from moorage.model import WorkTable

STATE = {table: f"SELECT state FROM {table} WHERE id = %(id)s" for table in SUBJECT}


def state(conn: Connection, table: WorkTable, row_id: UUID) -> str | None:
    """Return the state of a row, None when there is none."""
    row = one(conn, STATE[table], {"id": row_id})
    return str(row["state"]) if row else None
