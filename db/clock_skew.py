"""A clock that was set back: what it left lying in the future is brought near again."""

from db.connection import Connection, fetch_all, fetch_one

# A tick or an edge from the future was taken by a clock that has been set back since. Ticks alone do not tell of a jump
# that passed while no beat ran.
WAS_SET_BACK = """
SELECT 1 AS found
 WHERE EXISTS (SELECT FROM ticks WHERE started_at > moment() + interval '1 min')
    OR EXISTS (SELECT FROM events WHERE at > moment() + interval '1 min')
"""


def was_clock_set_back(conn: Connection) -> bool:
    """Return whether the database's clock was ahead of where it is now, and something was written meanwhile."""
    return fetch_one(conn, WAS_SET_BACK, {}) is not None


# No wait of ours is longer than five minutes; a server's Retry-After is given up here for the sake of all else.
RUN_NOW = {
    "deliveries": """
UPDATE deliveries SET run_at = moment(), woken_at = NULL
 WHERE state IN ('new', 'unmatched') AND lease_token IS NULL AND run_at > moment() + interval '10 min'
RETURNING id
""",
    "predictions": """
UPDATE predictions
   SET run_at = moment(), woken_at = NULL,
       submitted_at = CASE WHEN submitted_at > moment() THEN moment() ELSE submitted_at END
 WHERE (state IN ('planned', 'submitting') OR (state = 'running' AND run_at < deadline_at))
   AND lease_token IS NULL AND run_at > moment() + interval '10 min'
RETURNING id
""",
    "notices": """
UPDATE notices SET run_at = moment(), woken_at = NULL
 WHERE state = 'waiting' AND lease_token IS NULL AND run_at > moment() + interval '10 min'
RETURNING id
""",
    "outputs": """
UPDATE outputs SET run_at = moment(), woken_at = NULL
 WHERE state IN ('waiting', 'discarding') AND lease_token IS NULL AND run_at > moment() + interval '10 min'
RETURNING id
""",
}

# A live worker renews its lease within a third of it; a dead one's now ends in time.
END_LEASES = {
    table: f"""
UPDATE {table} SET leased_until = moment() + make_interval(secs => %(lease_seconds)s)
 WHERE lease_token IS NOT NULL AND leased_until > moment() + make_interval(secs => 2 * %(lease_seconds)s)
RETURNING id
"""
    for table in RUN_NOW
}


def correct_future_times(conn: Connection, lease_seconds: float) -> int:
    """Make due what waits for a time that was never meant, and let leases end as they would have; returns how many."""
    healed = [row for sql in RUN_NOW.values() for row in fetch_all(conn, sql)]
    healed += [row for sql in END_LEASES.values() for row in fetch_all(conn, sql, {"lease_seconds": lease_seconds})]
    return len(healed)
