"""Correction of times left in the future by a database clock that was set back."""

from db.connection import Connection, fetch_all
from db.statements import statement

# Ticks alone do not show a change while no beat ran.
IS_SET_BACK = """(EXISTS (SELECT FROM ticks WHERE started_at > moment() + interval '1 min')
    OR EXISTS (SELECT FROM events WHERE at > moment() + interval '1 min'))"""


@statement(f"SELECT 1 AS was_set_back WHERE {IS_SET_BACK}")
def was_clock_set_back(conn: Connection) -> bool: ...


_WAITING = {
    "deliveries": "state IN ('new', 'unmatched')",
    "predictions": "(state IN ('planned', 'submitting') OR (state = 'running' AND run_at < deadline_at))",
    "outputs": "state IN ('waiting', 'discarding')",
    "notifications": "state = 'waiting'",
}
_SUBMITTED_AT = ", submitted_at = least(submitted_at, moment())"

# Waits are five minutes at most. Only a longer Retry-After of a server is shortened by this.
MAKE_DUE = {
    table: f"""
WITH wrong AS MATERIALIZED (
    SELECT id FROM {table} WHERE {condition} AND lease_token IS NULL AND run_at > moment() + interval '10 min'
     FOR UPDATE SKIP LOCKED)
UPDATE {table} t SET run_at = moment(), woken_at = NULL{_SUBMITTED_AT if table == "predictions" else ""}
  FROM wrong WHERE t.id = wrong.id RETURNING t.id
"""
    for table, condition in _WAITING.items()
}

# A live worker renews within a third of its lease; that of a dead worker now expires in time.
SHORTEN_LEASES = {
    table: f"""
WITH wrong AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE lease_token IS NOT NULL AND leased_until > moment() + make_interval(secs => 2 * %(lease_seconds)s)
     FOR UPDATE SKIP LOCKED)
UPDATE {table} t SET leased_until = moment() + make_interval(secs => %(lease_seconds)s)
  FROM wrong WHERE t.id = wrong.id RETURNING t.id
"""
    for table in MAKE_DUE
}


def correct_future_times(conn: Connection, lease_seconds: float) -> int:
    """Make unlocked rows due whose run_at is too far away, and shorten leases; return the number of rows."""
    rows = [row for sql in MAKE_DUE.values() for row in fetch_all(conn, sql)]
    rows += [row for sql in SHORTEN_LEASES.values() for row in fetch_all(conn, sql, {"lease_seconds": lease_seconds})]
    return len(rows)
