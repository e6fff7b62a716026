"""How far a project's files are, counted from the rows of its jobs; and its status, which follows from them."""

from typing import Any

from db.connection import Connection, Row, fetch_all, fetch_one

# A job that failed is settled like any other. Without a job it stays what it was: open, or done before retention.
STATUS = """CASE WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = p.id AND j.settled_at IS NULL) THEN 'open'
            WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = p.id) THEN 'assets_generated' ELSE p.status END"""

LOCK = "SELECT id FROM projects WHERE id = %(id)s FOR NO KEY UPDATE"

NOTE = f"""
UPDATE projects p SET status = {STATUS} WHERE p.id = %(id)s AND p.status IS DISTINCT FROM {STATUS}
RETURNING status
"""


def update_status(conn: Connection, project_id: str) -> None:
    """
    Write a project's status as its jobs have it, after one of them ended or was opened again.

    Two statements: the second sees the ends that the lock waited for; in one, two last jobs would each miss the other.
    """
    conn.execute(LOCK, {"id": project_id})
    conn.execute(NOTE, {"id": project_id})


CHECK = f"""
SELECT p.id, p.status IS DISTINCT FROM {STATUS} AS differs
  FROM projects p WHERE p.id > %(after)s ORDER BY p.id LIMIT %(limit)s
"""


def list_wrong_statuses(conn: Connection, after: str, limit: int) -> tuple[list[str], str]:
    """Return which projects behind an id disagree with their jobs, and behind which id to go on, "" at the end."""
    rows = fetch_all(conn, CHECK, {"after": after, "limit": limit})
    return [row["id"] for row in rows if row["differs"]], rows[-1]["id"] if len(rows) == limit else ""


# How many files a job is to bring: as many as its prediction made; before that as many as were asked for, else one. A
# settled job brings no more, so that its files count as done, kept or not.
COUNT = f"""
SELECT {STATUS} AS status, c.*
  FROM projects p
 CROSS JOIN LATERAL (
       SELECT count(*) AS jobs, count(*) FILTER (WHERE settled_at IS NOT NULL) AS settled,
              count(*) FILTER (WHERE state IN ('failed', 'cancelled')) AS failed,
              count(*) FILTER (WHERE shown.placeholders > 0) AS placeholders,
              coalesce(sum(asked), 0)::bigint AS files_asked, coalesce(sum(shown.kept), 0)::bigint AS files_kept,
              coalesce(sum(CASE WHEN settled_at IS NULL THEN made.dead ELSE greatest(asked - made.kept, 0) END),
                       0)::bigint AS files_failed,
              coalesce(sum(CASE WHEN settled_at IS NULL THEN made.kept + made.dead ELSE asked END),
                       0)::bigint AS files_done
         FROM jobs j
        CROSS JOIN LATERAL (
              SELECT count(*) AS files, count(*) FILTER (WHERE state = 'kept') AS kept,
                     count(*) FILTER (WHERE state IN ('dead', 'discarding', 'discarded')) AS dead
                FROM outputs o
               WHERE o.job_id = j.id AND o.prediction_id = j.chosen_id AND NOT o.is_placeholder) made
        CROSS JOIN LATERAL (SELECT coalesce(nullif(made.files, 0), j.variants, 1) AS asked) wanted
        CROSS JOIN LATERAL (
              SELECT count(*) FILTER (WHERE NOT v.is_placeholder) AS kept,
                     count(*) FILTER (WHERE v.is_placeholder) AS placeholders
                FROM variants v WHERE v.render_id = j.id) shown
        WHERE j.project_id = p.id) c
 WHERE p.id = %(id)s
"""

FAILURES = """
SELECT id AS job_id, scene, state, category, reason, settled_at
  FROM jobs WHERE project_id = %(id)s AND state IN ('failed', 'cancelled')
 ORDER BY id LIMIT %(limit)s
"""


def get_progress(conn: Connection, project_id: str) -> dict[str, Any]:
    """
    Return a project's progress: status, jobs, settled, failed, placeholders, files_asked, files_kept, files_failed.

    `image_upload_progress` is the share of files that are kept or given up, 0 to 100: 100 only when every job is
    settled, 0 while there is none.
    """
    row = fetch_one(conn, COUNT, {"id": project_id}) or {}
    done, asked = row.pop("files_done", 0), row.get("files_asked", 0)
    share = done * 100 // asked if asked else 0
    whole = row.get("status") == "assets_generated"
    return {**row, "image_upload_progress": 100 if whole else min(share, 99)}


def list_failed_jobs(conn: Connection, project_id: str, limit: int = 100) -> list[Row]:
    """Return the jobs of a project that ended without any file, oldest first."""
    return fetch_all(conn, FAILURES, {"id": project_id, "limit": limit})
