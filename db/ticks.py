"""Ticks: one row a slot of a sweep. Whoever inserts it runs the sweep, so any number of beats may run."""

from typing import Any

from psycopg.types.json import Jsonb

from db.connection import Connection, Row, fetch_all, fetch_one

TAKE = """
INSERT INTO ticks (sweep, slot)
VALUES (%(sweep)s, floor(extract(epoch FROM moment()) / %(period_seconds)s)::bigint)
ON CONFLICT DO NOTHING
RETURNING slot
"""


def claim_slot(conn: Connection, sweep: str, period_seconds: float) -> int | None:
    """Take the present slot of a sweep; None when somebody has it."""
    row = fetch_one(conn, TAKE, {"sweep": sweep, "period_seconds": period_seconds})
    return int(row["slot"]) if row else None


FINISH = """
UPDATE ticks SET finished_at = moment(), result = %(result)s WHERE sweep = %(sweep)s AND slot = %(slot)s
"""

TRIM = "DELETE FROM ticks WHERE sweep = %(sweep)s AND slot < %(slot)s - 100"


def record_result(conn: Connection, sweep: str, slot: int, result: dict[str, Any]) -> None:
    """Record how a sweep's run ended; the last hundred slots are kept."""
    conn.execute(FINISH, {"sweep": sweep, "slot": slot, "result": Jsonb(result)})
    conn.execute(TRIM, {"sweep": sweep, "slot": slot})


LAST = """
SELECT DISTINCT ON (sweep) sweep, slot, started_at, finished_at, result
  FROM ticks ORDER BY sweep, started_at DESC  -- a longer period makes smaller slots
"""


def list_latest(conn: Connection) -> list[Row]:
    """Return the latest run of each sweep."""
    return fetch_all(conn, LAST)
