"""Who holds a lock that others wait for. Without pg_monitor a user sees no times or states of other users' sessions."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg

from moorage.errors import DatabaseLocked

Row = dict[str, Any]

LOOK_SECONDS: Final = 0.02
# The wait after a lock grows with the age of the transaction that holds it: a forgotten one is tried less and less.
MIN_WAIT_SECONDS: Final = 5.0
MAX_WAIT_SECONDS: Final = 60.0

_SESSION: Final = """
       a.pid, a.application_name, a.usename, a.state,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS state_seconds,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS transaction_seconds
"""

# Waiting sessions are blocked by others that wait themselves; the last one in the chain is looked for. A prepared
# transaction has the pid 0 and no session.
FIND_HOLDER: Final = f"""
WITH RECURSIVE blocker (pid, depth) AS (
    SELECT unnest(pg_blocking_pids(%(pid)s)), 1
    UNION SELECT b, depth + 1 FROM blocker, unnest(pg_blocking_pids(blocker.pid)) b WHERE depth < 10
)
SELECT b.pid = 0 AS is_prepared, {_SESSION}
  FROM (SELECT DISTINCT pid FROM blocker WHERE cardinality(pg_blocking_pids(pid)) = 0) b
  LEFT JOIN pg_stat_activity a ON a.pid = b.pid
 WHERE b.pid = 0 OR a.pid IS NOT NULL ORDER BY a.xact_start LIMIT 1
"""

# Sessions that block others for more than a second, or are idle in a transaction for more than ten with locks on rows.
LIST_HOLDERS: Final = f"""
WITH blocked AS (
    SELECT pid, unnest(pg_blocking_pids(pid)) AS holder FROM pg_stat_activity WHERE wait_event_type = 'Lock'
)
SELECT {_SESSION}, (SELECT count(DISTINCT b.pid) FROM blocked b WHERE b.holder = a.pid) AS waiting
  FROM pg_stat_activity a
 WHERE a.pid <> pg_backend_pid() AND a.datname = current_database()
   AND (a.pid IN (SELECT holder FROM blocked) AND coalesce(a.xact_start < clock_timestamp() - interval '1 s', true)
        OR a.state LIKE 'idle in transaction%%' AND a.state_change < clock_timestamp() - interval '10 s'
           AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted
                                                AND l.mode <> 'AccessShareLock'))
 ORDER BY a.xact_start, a.pid LIMIT 20
"""


def list_holders(conn: psycopg.Connection[Row]) -> list[Row]:
    return conn.execute(LIST_HOLDERS, {}).fetchall()


@contextlib.contextmanager
def watch(conn: psycopg.Connection[Row], observer: psycopg.Connection[Row]) -> Iterator[list[Row]]:
    """
    Look over `observer`, in a thread, for the session that `conn` waits for; yield a list for it.

    To be entered in the transaction that will wait: PgBouncer exchanges sessions.
    """
    row, done = conn.execute("SELECT pg_backend_pid() AS pid").fetchone(), threading.Event()
    holders: list[Row] = []

    def look() -> None:
        with contextlib.suppress(psycopg.Error):  # the error is reported without the holder
            while not done.wait(LOOK_SECONDS) and not holders:
                holders.extend(observer.execute(FIND_HOLDER, row).fetchall())

    thread = threading.Thread(target=look, name="lock-holder", daemon=True)
    thread.start()
    try:
        yield holders
    finally:
        done.set()
        thread.join(timeout=1)  # behind PgBouncer it may wait for a session


def explain(locked: DatabaseLocked, holders: Sequence[Row]) -> DatabaseLocked:
    """Return the error with the holder of the lock, and the time after which to try again."""
    if not holders:
        return DatabaseLocked(f"{locked}; its holder was not seen", retry_after=MIN_WAIT_SECONDS)
    seconds = holders[0]["transaction_seconds"] or 0.0
    wait = min(max(seconds / 2, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)
    message = f"locked by another transaction: {describe_holder(holders[0])}"
    return DatabaseLocked(message, facts=holders[0], retry_after=wait)


def describe_holder(holder: Mapping[str, Any]) -> str:
    if holder.get("is_prepared"):
        return "a prepared transaction (see pg_prepared_xacts)"
    name = f"pid {holder['pid']} ({holder['application_name'] or 'unnamed application'}, user {holder['usename']})"
    if holder["state"] is None:
        return f"{name}; grant pg_monitor to see its state"
    return f"{name}, {holder['state']} for {holder['state_seconds']:.0f} s"
