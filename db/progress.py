"""A project's progress and status, computed from its jobs."""

from typing import Any

from db.connection import Connection, Row, fetch_all, fetch_one

# Failed jobs are settled, too. A project without jobs keeps its status: retention may have deleted them.
STATUS = """CASE WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = p.id AND j.settled_at IS NULL) THEN 'open'
            WHEN EXISTS (SELECT FROM jobs j WHERE j.project_id = p.id) THEN 'assets_generated' ELSE p.status END"""

LOCK_PROJECT = "SELECT id FROM projects WHERE id = %(id)s FOR NO KEY UPDATE"

UPDATE_STATUS = f"""
UPDATE projects p SET status = {STATUS} WHERE p.id = %(id)s AND p.status IS DISTINCT FROM {STATUS}
RETURNING status
"""


def lock_project(conn: Connection, project_id: str) -> None:
    conn.execute(LOCK_PROJECT, {"id": project_id})


def update_status(conn: Connection, project_id: str) -> None:
    """
    Recompute a project's status after one of its jobs settled or was reopened.

    Two statements, so that the second sees what the lock waited for; in one, two last jobs would miss each other.
    """
    lock_project(conn, project_id)
    conn.execute(UPDATE_STATUS, {"id": project_id})


LIST_WRONG_STATUSES = f"""
SELECT p.id, p.status IS DISTINCT FROM {STATUS} AS differs
  FROM projects p WHERE p.id > %(after)s ORDER BY p.id LIMIT %(limit)s
"""


def list_wrong_statuses(conn: Connection, after: str, limit: int) -> tuple[list[str], str]:
    """Check one page of projects after an id; return those with a wrong status and the next `after` ("" at the end)."""
    rows = fetch_all(conn, LIST_WRONG_STATUSES, {"after": after, "limit": limit})
    return [row["id"] for row in rows if row["differs"]], rows[-1]["id"] if len(rows) == limit else ""


# Files expected of a job: the outputs of its chosen prediction; before that the number requested, else one. All files
# of a settled job count as done, kept or not.
GET_PROGRESS = f"""
SELECT {STATUS} AS status, c.* FROM projects p
 CROSS JOIN LATERAL (
       SELECT count(*) AS jobs, count(*) FILTER (WHERE settled_at IS NOT NULL) AS settled,
              count(*) FILTER (WHERE state IN ('failed', 'cancelled')) AS failed,
              count(*) FILTER (WHERE shown.placeholders > 0) AS placeholders,
              coalesce(sum(expected), 0)::bigint AS files_asked, coalesce(sum(shown.kept), 0)::bigint AS files_kept,
              coalesce(sum(CASE WHEN settled_at IS NULL THEN chosen.dead ELSE greatest(expected - chosen.kept, 0) END),
                       0)::bigint AS files_failed,
              coalesce(sum(CASE WHEN settled_at IS NULL THEN chosen.kept + chosen.dead ELSE expected END),
                       0)::bigint AS files_done
         FROM jobs j
        CROSS JOIN LATERAL (
              SELECT count(*) AS files, count(*) FILTER (WHERE state = 'kept') AS kept,
                     count(*) FILTER (WHERE state IN ('dead', 'discarding', 'discarded')) AS dead
                FROM outputs o WHERE o.job_id = j.id AND o.prediction_id = j.chosen_id AND NOT o.is_placeholder) chosen
        CROSS JOIN LATERAL (SELECT coalesce(nullif(chosen.files, 0), j.variants, 1) AS expected) requested
        CROSS JOIN LATERAL (
              SELECT count(*) FILTER (WHERE NOT v.is_placeholder) AS kept,
                     count(*) FILTER (WHERE v.is_placeholder) AS placeholders
                FROM variants v WHERE v.render_id = j.id) shown
        WHERE j.project_id = p.id) c
 WHERE p.id = %(id)s
"""

LIST_FAILED_JOBS = """
SELECT id AS job_id, scene, state, category, reason, settled_at
  FROM jobs WHERE project_id = %(id)s AND state IN ('failed', 'cancelled') ORDER BY id LIMIT %(limit)s
"""


def get_progress(conn: Connection, project_id: str) -> dict[str, Any]:
    """
    Return a project's status and numbers of jobs and files, by the names of GET_PROGRESS.

    `image_upload_progress`: percentage of files kept or failed: 100 only when all jobs are settled, 0 without files.
    """
    row = fetch_one(conn, GET_PROGRESS, {"id": project_id}) or {}
    files_done, files_asked = row.pop("files_done", 0), row.get("files_asked", 0)
    percent = files_done * 100 // files_asked if files_asked else 0
    is_settled = row.get("status") == "assets_generated"
    return {**row, "image_upload_progress": 100 if is_settled else min(percent, 99)}


def list_failed_jobs(conn: Connection, project_id: str, limit: int = 100) -> list[Row]:
    return fetch_all(conn, LIST_FAILED_JOBS, {"id": project_id, "limit": limit})
