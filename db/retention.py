"""
Retention: deletes old rows, raw bodies and inline bytes. Every statement processes a bounded number of rows, skips
locked rows and finds old rows by an index; each has a count for a dry run.

`seconds` is the retention period after a row ended.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from db import dead_letters, quarantine, uploads
from db.connection import Connection, Row, fetch_all, fetch_one
from db.discarding import build_discard_statement
from db.events import build_event_insert
from db.objects import LONG_TIMEOUT
from db.statements import statement

_OLD: Final = "moment() - make_interval(secs => %(seconds)s)"

# Dead letters stay while there are bytes that a replay needs.
_HAS_BYTES: Final = """(
    EXISTS (SELECT FROM deliveries d WHERE l.subject = 'delivery' AND d.id = l.subject_id AND d.body IS NOT NULL)
    OR EXISTS (SELECT FROM outputs o WHERE l.subject = 'output' AND o.id = l.subject_id
                  AND (num_nonnulls(o.quarantine_key, o.source_data) > 0
                       OR o.source_kind = 'object' AND o.source IS NOT NULL)))
"""


# --- renders ------------------------------------------------------------------------------------------------------

_RENDERS: Final = f"""
  FROM renders r JOIN jobs j ON j.id = r.id
 WHERE r.deleted_at IS NULL AND r.published_at < {_OLD} AND j.settled_at < {_OLD}
   AND NOT EXISTS (SELECT FROM jobs reader WHERE reader.owner = r.owner AND reader.state IN ('open', 'keeping')
                      AND strpos(reader.fallback_chain::text, r.id::text) > 0)
"""

MARK_DELETED: Final = f"""
WITH moved AS (
    UPDATE renders SET deleted_at = moment() WHERE id = %(id)s AND deleted_at IS NULL RETURNING id
) {build_event_insert("render", "'published'", "'deleted'", "%(reason)s", job_id="id")}
"""

# Dead outputs of a deleted render cannot be published later: their dead letters are closed.
CLOSE_DEAD_LETTERS: Final = dead_letters.build_close(
    "'discarded'",
    "'render deleted'",
    "o.job_id = %(id)s AND (d.subject, d.subject_id) = ('output', o.id)",
    "FROM outputs o",
)


@statement(f"SELECT r.id {_RENDERS} ORDER BY r.published_at LIMIT %(limit)s")
def list_old_renders(conn: Connection, seconds: float, limit: int) -> list[UUID]:
    """Return renders published, and of jobs settled, more than `seconds` ago."""


@statement(f"SELECT j.owner, j.project_id, j.scene {_RENDERS} AND r.id = %(render_id)s FOR UPDATE OF j SKIP LOCKED")
def lock_old_render(conn: Connection, render_id: UUID, seconds: float) -> Row | None:
    """Lock the job of an old render; return its owner, project_id and scene; None: locked, or no longer old."""


@statement(build_discard_statement("true"))
def discard_render_files(conn: Connection, job_id: UUID, actor: str, reason: str = "render deleted") -> None:
    """Set the outputs of a render, whose job is locked, to `discarding`: the discard step deletes their objects."""


def mark_render_deleted(conn: Connection, render_id: UUID, actor: str, reason: str) -> None:
    """Mark a render as deleted, and close the dead letters of its job's outputs."""
    conn.execute(MARK_DELETED, {"id": render_id, "actor": actor, "reason": reason})
    conn.execute(CLOSE_DEAD_LETTERS, {"id": render_id, "actor": actor})


# --- batches: raw bodies, inline bytes, ended rows ------------------------------------------------------------------


def _build_batch(rows: str, time: str, change: str) -> tuple[str, str]:
    """Return the statement that locks a batch of rows as `old` and changes them, and which rows these are."""
    old = f"SELECT id {rows} ORDER BY {time} LIMIT %(limit)s FOR UPDATE SKIP LOCKED"
    return f"WITH old AS MATERIALIZED ({old}) {change}", rows


def _build_batch_with_letters(rows: str, subject: str, change: str) -> tuple[str, str]:
    """Return a batch without the rows whose dead letters are locked."""
    letters = f"FROM dead_letters l JOIN unlocked u ON l.subject = '{subject}' AND l.subject_id = u.id"
    return f"""
WITH unlocked AS MATERIALIZED (
    SELECT id {rows} ORDER BY ended_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), unlocked_letters AS MATERIALIZED (
    SELECT l.id {letters} FOR UPDATE OF l SKIP LOCKED
), old AS MATERIALIZED (
    SELECT id FROM unlocked
    EXCEPT SELECT u.id {letters} AND l.id NOT IN (SELECT id FROM unlocked_letters)
), {change}
""", rows  # fmt: skip


def _build_purge(rows: str, subject: str, change: str) -> tuple[str, str]:
    """Return a batch of dead rows that cannot be replayed any more: their open dead letters become not retryable."""
    letters = f"""letters AS (
    UPDATE dead_letters l SET retryable = false
      FROM old WHERE l.subject = '{subject}' AND l.subject_id = old.id AND l.state = 'open'
)"""
    return _build_batch_with_letters(rows, subject, f"{letters} {change}")


def _build_delete(table: str, subject: str) -> tuple[str, str]:
    """Return a batch of ended rows without an open dead letter that has bytes; its dead letters go with it."""
    rows = f"""
  FROM {table} WHERE ended_at IS NOT NULL AND ended_at < {_OLD}
   AND NOT EXISTS (SELECT FROM dead_letters l
                    WHERE l.subject = '{subject}' AND l.subject_id = {table}.id AND l.state = 'open'
                      AND {_HAS_BYTES})"""
    change = f"""letters AS (
    DELETE FROM dead_letters l USING old WHERE l.subject = '{subject}' AND l.subject_id = old.id RETURNING l.id
), row_events AS (
    DELETE FROM events e USING old WHERE e.subject = '{subject}' AND e.subject_id = old.id
), letter_events AS (
    DELETE FROM events e USING letters WHERE e.subject = 'dead_letter' AND e.subject_id = letters.id
) DELETE FROM {table} t USING old WHERE t.id = old.id RETURNING t.id"""
    return _build_batch_with_letters(rows, subject, change)


_BODIES: Final = f"FROM deliveries WHERE body IS NOT NULL AND ended_at IS NOT NULL AND ended_at < {_OLD}"
_OF_OLD: Final = "FROM old WHERE t.id = old.id RETURNING t.id"
# The orphan sweep deletes the objects of sources and of files in quarantine.
IN_BATCHES: Final = {
    "bodies": _build_batch(
        f"{_BODIES} AND state <> 'dead'", "ended_at", f"UPDATE deliveries t SET body = NULL {_OF_OLD}"
    ),
    "failed_bodies": _build_purge(
        f"{_BODIES} AND state = 'dead'", "delivery", f"UPDATE deliveries t SET body = NULL {_OF_OLD}"
    ),
    "failed_sources": _build_purge(
        f"""FROM outputs
 WHERE state = 'dead' AND (source_data IS NOT NULL OR source_kind = 'object' AND source IS NOT NULL)
   AND ended_at < {_OLD}""",
        "output",
        f"UPDATE outputs t SET source_data = NULL, source = CASE WHEN source_kind = 'url' THEN source END {_OF_OLD}",
    ),
    "quarantine": _build_batch(  # of files that were not kept; those of waiting rows are about to be read
        f"FROM outputs WHERE quarantine_key IS NOT NULL AND state <> 'waiting' AND quarantined_at < {_OLD}",
        "quarantined_at",
        f"UPDATE outputs t SET {quarantine.RELEASE} {_OF_OLD}",
    ),
    "open_dead_letters": _build_batch(
        f"""
  FROM dead_letters l WHERE state = 'open' AND created_at < {_OLD}
   AND NOT {_HAS_BYTES}""",
        "created_at",
        dead_letters.build_close("'discarded'", "'older than the retention period'", "d.id = old.id", "FROM old", ","),
    ),
    "uploads": (uploads.MARK_OLD, uploads.OLD),
    "deleted_uploads": _build_batch(
        f"FROM uploads WHERE deleted_at IS NOT NULL AND deleted_at < {_OLD}",
        "deleted_at",
        "DELETE FROM uploads t USING old WHERE t.id = old.id RETURNING t.id",
    ),
    "deliveries": _build_delete("deliveries", "delivery"),
    "dead_letters": _build_batch(  # a discarded one is deleted with its row, whose end it explains
        f"""FROM dead_letters
 WHERE closed_at IS NOT NULL AND closed_at < {_OLD} AND (state = 'replayed' OR subject = 'message')""",
        "closed_at",
        """, row_events AS (DELETE FROM events e USING old WHERE e.subject = 'dead_letter' AND e.subject_id = old.id)
DELETE FROM dead_letters t USING old WHERE t.id = old.id RETURNING t.id""",
    ),
    "notifications": _build_delete("notifications", "notification"),  # those of a deleted job are deleted with it
}


def expire_batch(conn: Connection, kind: str, seconds: float, limit: int, actor: str) -> int:
    """Purge or delete one batch of a kind (`bodies`, `deliveries`, ...); return the number of rows."""
    return len(fetch_all(conn, IN_BATCHES[kind][0], {"seconds": seconds, "limit": limit, "actor": actor}))


# --- jobs without a render ----------------------------------------------------------------------------------------

_NO_LIVE_ROWS: Final = f"""
   AND NOT EXISTS (SELECT FROM predictions p WHERE p.job_id = j.id AND p.run_at IS NOT NULL)
   AND NOT EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id AND (o.run_at IS NOT NULL OR o.source_kind = 'object'
                                                                    AND o.source IS NOT NULL))
   AND NOT EXISTS (SELECT FROM notifications n WHERE n.job_id = j.id AND n.ended_at IS NULL)
   AND NOT EXISTS (SELECT FROM dead_letters l WHERE l.job_id = j.id AND l.state = 'open' AND {_HAS_BYTES})
"""

_FAILED_JOBS: Final = f"""
  FROM jobs j WHERE j.state IN ('failed', 'cancelled') AND j.settled_at < {_OLD}
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id)
"""

_DELETED_JOBS: Final = f"""
  FROM renders r JOIN jobs j ON j.id = r.id
 WHERE r.deleted_at IS NOT NULL AND r.deleted_at < {_OLD} AND j.settled_at IS NOT NULL
"""

# Pages of old jobs, with those that stay: what a page costs does not grow with their number.
_PAGE: Final = "(%(after)s::timestamptz, %(after_id)s::uuid) ORDER BY 2, 1 LIMIT %(limit)s"
OLD_FAILED_JOBS: Final = f"SELECT j.id, j.settled_at AS at {_FAILED_JOBS} AND (j.settled_at, j.id) > {_PAGE}"
OLD_DELETED_JOBS: Final = f"SELECT j.id, r.deleted_at AS at {_DELETED_JOBS} AND (r.deleted_at, j.id) > {_PAGE}"
START: Final = ("-infinity", UUID(int=0))

# Rows that are locked, and with them their jobs, are left for the next run: the others do not wait for them.
_OF_JOBS: Final = "job_id = ANY(%(ids)s::uuid[])"
DELIVERIES: Final = f"SELECT id FROM deliveries WHERE prediction_id IN (SELECT id FROM predictions WHERE {_OF_JOBS})"
LOCK_JOBS: Final = "SELECT id FROM jobs WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE"
HAVE_NO_LIVE_ROWS: Final = f"""
SELECT j.id FROM jobs j WHERE j.id = ANY(%(ids)s::uuid[]) AND j.settled_at IS NOT NULL {_NO_LIVE_ROWS}
   AND NOT EXISTS (SELECT FROM predictions p JOIN deliveries d ON d.prediction_id = p.id
                    WHERE p.job_id = j.id AND (d.ended_at IS NULL OR d.id <> ALL(%(deliveries)s::uuid[])))
"""

# In the order of the foreign keys.
DROP_JOBS: Final = {
    "letters": f"""
WITH deleted AS (
    DELETE FROM dead_letters WHERE {_OF_JOBS} OR (subject = 'delivery' AND subject_id = ANY(%(deliveries)s::uuid[]))
    RETURNING id
)
DELETE FROM events e USING deleted WHERE e.subject = 'dead_letter' AND e.subject_id = deleted.id
""",
    "delivery_events": "DELETE FROM events WHERE subject = 'delivery' AND subject_id = ANY(%(deliveries)s::uuid[])",
    "events": f"""
DELETE FROM events WHERE {_OF_JOBS} AND subject IN ('job', 'prediction', 'output', 'notification', 'render')
""",
    "notifications": f"DELETE FROM notifications WHERE {_OF_JOBS}",
    "placements": "DELETE FROM placements WHERE render_id = ANY(%(ids)s::uuid[])",
    "variants": "DELETE FROM render_variants WHERE render_id = ANY(%(ids)s::uuid[])",
    "renders": "DELETE FROM renders WHERE id = ANY(%(ids)s::uuid[])",
    "outputs": f"DELETE FROM outputs WHERE {_OF_JOBS}",
    "deliveries": "DELETE FROM deliveries WHERE id = ANY(%(deliveries)s::uuid[])",
    "chosen": "UPDATE jobs SET chosen_id = NULL WHERE id = ANY(%(ids)s::uuid[]) AND chosen_id IS NOT NULL",
    "predictions": f"DELETE FROM predictions WHERE {_OF_JOBS}",
    "jobs": "DELETE FROM jobs WHERE id = ANY(%(ids)s::uuid[])",
}


def list_old_jobs(conn: Connection, sql: str, seconds: float, limit: int, after: tuple[object, UUID]) -> list[Row]:
    """Return `id` and end (`at`) of the next jobs that ended more than `seconds` ago without a visible render."""
    return fetch_all(conn, sql, {"seconds": seconds, "limit": limit, "after": after[0], "after_id": after[1]})


def delete_jobs(conn: Connection, job_ids: Sequence[UUID]) -> int:
    """Delete jobs and all their rows, but none that is locked or has live rows; return their number."""
    skipping = f"{DELIVERIES} ORDER BY id FOR UPDATE SKIP LOCKED"
    deliveries = [row["id"] for row in fetch_all(conn, skipping, {"ids": job_ids})]
    locked = [row["id"] for row in fetch_all(conn, f"{LOCK_JOBS} SKIP LOCKED", {"ids": job_ids})]
    ids = [row["id"] for row in fetch_all(conn, HAVE_NO_LIVE_ROWS, {"ids": locked, "deliveries": deliveries})]
    deliveries = [row["id"] for row in fetch_all(conn, DELIVERIES, {"ids": ids})]
    for sql in DROP_JOBS.values() if ids else ():
        conn.execute(sql, {"ids": ids, "deliveries": deliveries})
    return len(ids)


# --- a dry run ----------------------------------------------------------------------------------------------------

COUNTS: Final = {
    "renders": f"SELECT count(*) AS value {_RENDERS}",
    "jobs": f"SELECT (SELECT count(*) {_FAILED_JOBS} {_NO_LIVE_ROWS})"
    f" + (SELECT count(*) {_DELETED_JOBS} {_NO_LIVE_ROWS}) AS value",
    **{kind: f"SELECT count(*) AS value {old}" for kind, (_, old) in IN_BATCHES.items()},
}


def count_expired_rows(conn: Connection, kind: str, seconds: float) -> int:
    conn.execute(LONG_TIMEOUT)
    row = fetch_one(conn, COUNTS[kind], {"seconds": seconds})
    return int(row["value"]) if row else 0
