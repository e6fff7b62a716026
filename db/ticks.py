"""Ticks: one row for each slot of a sweep. The process that inserts it runs the sweep, so several beats may run."""

from typing import Any

from psycopg.types.json import Jsonb

from db.connection import Connection, Row, fetch_all, fetch_one

CLAIM_SLOT = """
INSERT INTO ticks (sweep, slot)
VALUES (%(sweep)s, floor(extract(epoch FROM moment()) / %(period_seconds)s)::bigint)
ON CONFLICT DO NOTHING
RETURNING slot
"""


def claim_slot(conn: Connection, sweep: str, period_seconds: float) -> int | None:
    """Claim the current slot of a sweep and return it; None if another process has it."""
    row = fetch_one(conn, CLAIM_SLOT, {"sweep": sweep, "period_seconds": period_seconds})
    return int(row["slot"]) if row else None


RECORD_RESULT = """
UPDATE ticks SET finished_at = moment(), result = %(result)s WHERE sweep = %(sweep)s AND slot = %(slot)s
"""

DELETE_OLD = "DELETE FROM ticks WHERE sweep = %(sweep)s AND slot < %(slot)s - 100"


def record_result(conn: Connection, sweep: str, slot: int, result: dict[str, Any]) -> None:
    """Record the result of a sweep's run, and delete all but its last 100 slots."""
    conn.execute(RECORD_RESULT, {"sweep": sweep, "slot": slot, "result": Jsonb(result)})
    conn.execute(DELETE_OLD, {"sweep": sweep, "slot": slot})


LIST_LATEST = """
SELECT DISTINCT ON (sweep) sweep, slot, started_at, finished_at, result
  FROM ticks ORDER BY sweep, started_at DESC  -- not by slot: a longer period has smaller slot numbers
"""


def list_latest(conn: Connection) -> list[Row]:
    return fetch_all(conn, LIST_LATEST)
