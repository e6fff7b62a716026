"""
Retention: deletes old rows, raw bodies and inline bytes. Every statement processes a bounded number of rows, skips
locked rows and finds old rows by an index; each has a count for a dry run.

`seconds` is the retention period after a row ended.
"""

from typing import Any, Final
from uuid import UUID

from db import quarantine
from db.connection import Connection, Row, fetch_all, fetch_one
from db.discarding import build_discard_statement
from db.events import build_event_insert
from db.objects import LONG_TIMEOUT

_OLD: Final = "moment() - make_interval(secs => %(seconds)s)"


def _lock_with_letters(rows: str, subject: str) -> str:
    """Return the expressions that lock a batch of rows as `old`; without those whose dead letters are locked."""
    letters = f"FROM dead_letters l JOIN unlocked u ON l.subject = '{subject}' AND l.subject_id = u.id"
    return f"""unlocked AS MATERIALIZED (
    SELECT id {rows} ORDER BY ended_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), unlocked_letters AS MATERIALIZED (
    SELECT l.id {letters} FOR UPDATE OF l SKIP LOCKED
), old AS MATERIALIZED (
    SELECT id FROM unlocked
    EXCEPT SELECT u.id {letters} AND l.id NOT IN (SELECT id FROM unlocked_letters)
)"""


# --- renders ------------------------------------------------------------------------------------------------------

_RENDERS: Final = f"""
  FROM renders r JOIN jobs j ON j.id = r.id
 WHERE r.deleted_at IS NULL AND r.published_at < {_OLD} AND j.settled_at < {_OLD}
"""

OLD_RENDERS: Final = f"SELECT r.id {_RENDERS} ORDER BY r.published_at LIMIT %(limit)s"

LOCK_RENDER: Final = f"SELECT j.project_id {_RENDERS} AND r.id = %(id)s FOR UPDATE OF j SKIP LOCKED"

DISCARD_PUBLISHED: Final = build_discard_statement("true")

MARK_DELETED: Final = f"""
WITH moved AS (
    UPDATE renders SET deleted_at = moment() WHERE id = %(id)s AND deleted_at IS NULL RETURNING id
) {build_event_insert("render", "'published'", "'deleted'", "%(reason)s", job_id="id")}
"""

# Dead outputs of a deleted render cannot be published later: their dead letters are closed.
CLOSE_DEAD_LETTERS: Final = f"""
WITH moved AS (
    UPDATE dead_letters d SET state = 'discarded', closed_at = moment(), closed_by = %(actor)s
      FROM outputs o WHERE o.job_id = %(id)s AND d.subject = 'output' AND d.subject_id = o.id AND d.state = 'open'
    RETURNING d.id, o.job_id
) {build_event_insert("dead_letter", "'open'", "'discarded'", "'render deleted'")}
"""


def list_old_renders(conn: Connection, seconds: float, limit: int) -> list[UUID]:
    """Return renders published, and of jobs settled, more than `seconds` ago."""
    return [row["id"] for row in fetch_all(conn, OLD_RENDERS, {"seconds": seconds, "limit": limit})]


def lock_old_render(conn: Connection, render_id: UUID, seconds: float) -> Row | None:
    """Lock the job of an old render; return its project_id, or None if it is locked or no longer old."""
    return fetch_one(conn, LOCK_RENDER, {"id": render_id, "seconds": seconds})


def discard_render_files(conn: Connection, render_id: UUID, actor: str) -> None:
    """Set the outputs of a render, whose job is locked, to `discarding`: the discard step deletes their objects."""
    conn.execute(DISCARD_PUBLISHED, {"job_id": render_id, "reason": "render deleted", "actor": actor})


def mark_render_deleted(conn: Connection, render_id: UUID, actor: str, reason: str) -> None:
    """Mark a render as deleted, and close the dead letters of its job's outputs."""
    conn.execute(MARK_DELETED, {"id": render_id, "actor": actor, "reason": reason})
    conn.execute(CLOSE_DEAD_LETTERS, {"id": render_id, "actor": actor})


# --- raw bodies and inline bytes ----------------------------------------------------------------------------------

_BODIES: Final = f"FROM deliveries WHERE body IS NOT NULL AND ended_at IS NOT NULL AND ended_at < {_OLD}"

PURGE_BODIES: Final = f"""
WITH old AS MATERIALIZED (
    SELECT id {_BODIES} AND state <> 'dead' ORDER BY ended_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE deliveries d SET body = NULL FROM old WHERE d.id = old.id RETURNING d.id
"""

# A dead row without its body or bytes cannot be replayed: its open dead letter becomes not retryable.
PURGE_DEAD_BODIES: Final = f"""
WITH {_lock_with_letters(f"{_BODIES} AND state = 'dead'", "delivery")}, letters AS (
    UPDATE dead_letters l SET retryable = false
      FROM old WHERE l.subject = 'delivery' AND l.subject_id = old.id AND l.state = 'open'
)
UPDATE deliveries d SET body = NULL FROM old WHERE d.id = old.id RETURNING d.id
"""

_SOURCES: Final = f"FROM outputs WHERE state = 'dead' AND source_data IS NOT NULL AND ended_at < {_OLD}"

PURGE_SOURCES: Final = f"""
WITH {_lock_with_letters(_SOURCES, "output")}, letters AS (
    UPDATE dead_letters l SET retryable = false
      FROM old WHERE l.subject = 'output' AND l.subject_id = old.id AND l.state = 'open'
)
UPDATE outputs o SET source_data = NULL FROM old WHERE o.id = old.id RETURNING o.id
"""

# Of files that were not kept; those of waiting rows are about to be read. The orphan sweep deletes the objects.
_QUARANTINED: Final = (
    f"FROM outputs WHERE quarantine_key IS NOT NULL AND state <> 'waiting' AND quarantined_at < {_OLD}"
)

RELEASE_QUARANTINED: Final = f"""
WITH old AS MATERIALIZED (
    SELECT id {_QUARANTINED} ORDER BY quarantined_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE outputs o SET {quarantine.RELEASE} FROM old WHERE o.id = old.id RETURNING o.id
"""

# --- ended rows, always deleted together with their events -----------------------


def _ended(table: str, subject: str) -> str:
    """Return the condition for ended rows of a table without an open dead letter."""
    return f"""
  FROM {table} WHERE ended_at IS NOT NULL AND ended_at < {_OLD}
   AND NOT EXISTS (SELECT FROM dead_letters l
                    WHERE l.subject = '{subject}' AND l.subject_id = {table}.id AND l.state = 'open')
"""


def _build_delete_statement(table: str, subject: str) -> str:
    """Return the statement that deletes such rows, their dead letters, and the events of both."""
    return f"""
WITH {_lock_with_letters(_ended(table, subject), subject)}, letters AS (
    DELETE FROM dead_letters l USING old WHERE l.subject = '{subject}' AND l.subject_id = old.id RETURNING l.id
), row_events AS (
    DELETE FROM events e USING old WHERE e.subject = '{subject}' AND e.subject_id = old.id
), letter_events AS (
    DELETE FROM events e USING letters WHERE e.subject = 'dead_letter' AND e.subject_id = letters.id
)
DELETE FROM {table} t USING old WHERE t.id = old.id RETURNING t.id
"""


DROP_DELIVERIES: Final = _build_delete_statement("deliveries", "delivery")
# Those of a deleted job are deleted with it.
DROP_NOTIFICATIONS: Final = _build_delete_statement("notifications", "notification")

# A discarded dead letter is deleted with its row, whose end it explains.
_LETTERS: Final = f"""
  FROM dead_letters WHERE closed_at IS NOT NULL AND closed_at < {_OLD} AND (state = 'replayed' OR subject = 'message')
"""

DROP_LETTERS: Final = f"""
WITH old AS MATERIALIZED (
    SELECT id {_LETTERS} ORDER BY closed_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), row_events AS (
    DELETE FROM events e USING old WHERE e.subject = 'dead_letter' AND e.subject_id = old.id
)
DELETE FROM dead_letters d USING old WHERE d.id = old.id RETURNING d.id
"""

IN_BATCHES: Final = {
    "bodies": (PURGE_BODIES, f"{_BODIES} AND state <> 'dead'"),
    "failed_bodies": (PURGE_DEAD_BODIES, f"{_BODIES} AND state = 'dead'"),
    "failed_sources": (PURGE_SOURCES, _SOURCES),
    "quarantine": (RELEASE_QUARANTINED, _QUARANTINED),
    "deliveries": (DROP_DELIVERIES, _ended("deliveries", "delivery")),
    "dead_letters": (DROP_LETTERS, _LETTERS),
    "notifications": (DROP_NOTIFICATIONS, _ended("notifications", "notification")),
}


def expire_batch(conn: Connection, kind: str, seconds: float, limit: int) -> int:
    """Purge or delete one batch of a kind (`bodies`, `deliveries`, ...); return the number of rows."""
    return len(fetch_all(conn, IN_BATCHES[kind][0], {"seconds": seconds, "limit": limit}))


# --- jobs without a render ----------------------------------------------------------------------------------------

_NO_LIVE_ROWS: Final = """
   AND NOT EXISTS (SELECT FROM predictions p WHERE p.job_id = j.id AND p.run_at IS NOT NULL)
   AND NOT EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id AND (o.run_at IS NOT NULL OR o.source_kind = 'object'
                                                                    AND o.source IS NOT NULL))
   AND NOT EXISTS (SELECT FROM outputs o JOIN dead_letters l ON l.subject = 'output' AND l.subject_id = o.id
                    WHERE o.job_id = j.id AND l.state = 'open')
   AND NOT EXISTS (SELECT FROM predictions p JOIN dead_letters l ON l.subject = 'prediction' AND l.subject_id = p.id
                    WHERE p.job_id = j.id AND l.state = 'open')
   AND NOT EXISTS (SELECT FROM notifications n
                    WHERE n.job_id = j.id AND (n.ended_at IS NULL OR EXISTS (
                          SELECT FROM dead_letters l
                           WHERE l.subject = 'notification' AND l.subject_id = n.id AND l.state = 'open')))
   AND NOT EXISTS (SELECT FROM predictions p JOIN deliveries d ON d.prediction_id = p.id
                    WHERE p.job_id = j.id AND (d.ended_at IS NULL OR EXISTS (
                          SELECT FROM dead_letters l
                           WHERE l.subject = 'delivery' AND l.subject_id = d.id AND l.state = 'open')))
"""

_FAILED_JOBS: Final = f"""
  FROM jobs j WHERE j.state IN ('failed', 'cancelled') AND j.settled_at < {_OLD}
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id) {_NO_LIVE_ROWS}
"""

_DELETED_JOBS: Final = f"""
  FROM renders r JOIN jobs j ON j.id = r.id
 WHERE r.deleted_at IS NOT NULL AND r.deleted_at < {_OLD} AND j.settled_at IS NOT NULL {_NO_LIVE_ROWS}
"""

OLD_FAILED_JOBS: Final = f"SELECT j.id {_FAILED_JOBS} ORDER BY j.settled_at LIMIT %(limit)s"

OLD_DELETED_JOBS: Final = f"""
WITH r AS MATERIALIZED (
    SELECT id, deleted_at FROM renders WHERE deleted_at IS NOT NULL AND deleted_at < {_OLD}
)
SELECT j.id FROM r JOIN jobs j ON j.id = r.id WHERE j.settled_at IS NOT NULL {_NO_LIVE_ROWS}
 ORDER BY r.deleted_at LIMIT %(limit)s
"""

HAS_NO_LIVE_ROWS: Final = f"SELECT j.id FROM jobs j WHERE j.id = %(id)s AND j.settled_at IS NOT NULL {_NO_LIVE_ROWS}"

LOCK_DELIVERIES: Final = """
SELECT id FROM deliveries WHERE prediction_id IN (SELECT id FROM predictions WHERE job_id = %(id)s)
 ORDER BY id FOR UPDATE
"""

LOCK_JOB: Final = "SELECT id FROM jobs WHERE id = %(id)s FOR UPDATE SKIP LOCKED"

# In the order of the foreign keys.
DROP_JOB: Final = {
    "letters": """
WITH deleted AS (
    DELETE FROM dead_letters WHERE (subject = 'output' AND subject_id IN (SELECT id FROM outputs WHERE job_id = %(id)s))
        OR (subject = 'prediction' AND subject_id IN (SELECT id FROM predictions WHERE job_id = %(id)s))
        OR (subject = 'notification' AND subject_id IN (SELECT id FROM notifications WHERE job_id = %(id)s))
        OR (subject = 'delivery' AND subject_id = ANY(%(deliveries)s::uuid[]))
    RETURNING id
)
DELETE FROM events e USING deleted WHERE e.subject = 'dead_letter' AND e.subject_id = deleted.id
""",
    "delivery_events": "DELETE FROM events WHERE subject = 'delivery' AND subject_id = ANY(%(deliveries)s::uuid[])",
    "events": """
DELETE FROM events WHERE job_id = %(id)s AND subject IN ('job', 'prediction', 'output', 'notification', 'render')
""",
    "notifications": "DELETE FROM notifications WHERE job_id = %(id)s",
    "placements": "DELETE FROM placements WHERE render_id = %(id)s",
    "variants": "DELETE FROM render_variants WHERE render_id = %(id)s",
    "renders": "DELETE FROM renders WHERE id = %(id)s",
    "outputs": "DELETE FROM outputs WHERE job_id = %(id)s",
    "deliveries": "DELETE FROM deliveries WHERE id = ANY(%(deliveries)s::uuid[])",
    "chosen": "UPDATE jobs SET chosen_id = NULL WHERE id = %(id)s",
    "predictions": "DELETE FROM predictions WHERE job_id = %(id)s",
    "jobs": "DELETE FROM jobs WHERE id = %(id)s",
}


def list_old_jobs(conn: Connection, seconds: float, limit: int) -> list[UUID]:
    """Return jobs that ended more than `seconds` ago without a visible render and have no live rows."""
    args = {"seconds": seconds, "limit": limit}
    return [row["id"] for sql in (OLD_FAILED_JOBS, OLD_DELETED_JOBS) for row in fetch_all(conn, sql, args)]


def delete_job(conn: Connection, job_id: UUID) -> bool:
    """Delete a job and all its rows; return False if it is locked or has live rows again."""
    deliveries = [row["id"] for row in fetch_all(conn, LOCK_DELIVERIES, {"id": job_id})]
    if fetch_one(conn, LOCK_JOB, {"id": job_id}) is None or fetch_one(conn, HAS_NO_LIVE_ROWS, {"id": job_id}) is None:
        return False
    _delete_rows(conn, {"id": job_id, "deliveries": deliveries})
    return True


def _delete_rows(conn: Connection, args: dict[str, Any]) -> None:
    for sql in DROP_JOB.values():
        conn.execute(sql, args)


# --- a dry run ----------------------------------------------------------------------------------------------------

COUNTS: Final = {
    "renders": f"SELECT count(*) AS value {_RENDERS}",
    "jobs": f"SELECT (SELECT count(*) {_FAILED_JOBS}) + (SELECT count(*) {_DELETED_JOBS}) AS value",
    **{kind: f"SELECT count(*) AS value {old}" for kind, (_, old) in IN_BATCHES.items()},
}


def count_expired_rows(conn: Connection, kind: str, seconds: float) -> int:
    """Return the number of old rows of a kind."""
    conn.execute(LONG_TIMEOUT)
    row = fetch_one(conn, COUNTS[kind], {"seconds": seconds})
    return int(row["value"]) if row else 0
