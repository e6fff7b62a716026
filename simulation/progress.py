"""Progress of demo and drill, read from PostgreSQL."""

from typing import Any

from db.connection import Connection, Row, fetch_all

PROGRESS = """
SELECT (SELECT count(*) FROM deliveries) AS accepted,
       (SELECT count(*) FROM deliveries WHERE ended_at IS NULL) AS deliveries,
       (SELECT count(*) FROM jobs WHERE settled_at IS NULL) AS jobs,
       (SELECT count(*) FROM jobs) AS jobs_all,
       (SELECT count(*) FROM outputs WHERE state = 'kept') AS kept,
       (SELECT count(*) FROM outputs WHERE ended_at IS NULL) AS waiting,
       (SELECT count(*) FROM outputs WHERE state = 'dead') AS dead,
       (SELECT count(*) FROM notifications WHERE ended_at IS NULL) AS notifications,
       (SELECT count(*) FROM dead_letters WHERE state = 'open') AS dead_letters
"""

DEAD_LETTERS = "SELECT category, error, count(*) AS count FROM dead_letters GROUP BY 1, 2 ORDER BY 3 DESC"


def read_progress(conn: Connection) -> dict[str, Any]:
    return fetch_all(conn, PROGRESS)[0]


def is_quiet(progress: dict[str, Any], jobs: int) -> bool:
    """Return True if at least `jobs` jobs exist, all jobs are settled and no work is left."""
    unfinished = ("jobs", "deliveries", "waiting", "notifications")
    return progress["jobs_all"] >= jobs and not any(progress[name] for name in unfinished)


def count_dead_letters(conn: Connection) -> list[Row]:
    """Return category, error and count, the most frequent first."""
    return fetch_all(conn, DEAD_LETTERS)
