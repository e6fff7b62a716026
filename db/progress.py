"""A project's progress and status, computed from its jobs."""

from typing import Any, Final

from db.connection import Connection, Row, fetch_one
from db.projects import build_key_columns
from db.statements import statement
from moorage.model import ProjectKey

# Failed jobs are settled, too. A project without jobs keeps its status: retention may have deleted them.
_OF = "j.owner = p.owner AND j.project_id = p.id"
STATUS = f"""CASE WHEN EXISTS (SELECT FROM jobs j WHERE {_OF} AND j.settled_at IS NULL) THEN 'open'
            WHEN EXISTS (SELECT FROM jobs j WHERE {_OF}) THEN 'assets_generated' ELSE p.status END"""


@statement("SELECT id FROM projects WHERE owner = %(owner)s AND id = %(id)s FOR NO KEY UPDATE")
def lock_project(conn: Connection, project: ProjectKey) -> None: ...


@statement(f"""
UPDATE projects p SET status = {STATUS}
 WHERE p.owner = %(owner)s AND p.id = %(id)s AND p.status IS DISTINCT FROM {STATUS}
""")
def _update_status(conn: Connection, project: ProjectKey) -> None: ...


def update_status(conn: Connection, project: ProjectKey) -> None:
    """
    Recompute a project's status after one of its jobs settled or was reopened.

    Two statements, so that the second sees what the lock waited for; in one, two last jobs would miss each other.
    """
    lock_project(conn, project)
    _update_status(conn, project)


STATUSES_PER_RUN: Final = 500  # projects whose status is compared with their jobs
_PAGE: Final = f"""
SELECT p.owner, p.id, p.status IS DISTINCT FROM {STATUS} AS differs
  FROM projects p, LATERAL (SELECT coalesce((SELECT after_key FROM cursors WHERE sweep = 'progress'), '/') AS key) c
 WHERE (p.owner, p.id) > ({build_key_columns("key")})
 ORDER BY p.owner, p.id LIMIT %(limit)s"""
# A full page is due without a wrong status, too: the cursor moves on.
_IS_PAGE_DUE: Final = f"(SELECT count(*) = %(limit)s OR bool_or(differs) IS TRUE FROM ({_PAGE}) AS page)"
IS_PAGE_DUE: Final = _IS_PAGE_DUE.replace("%(limit)s", str(STATUSES_PER_RUN))


@statement(f"""
WITH page AS MATERIALIZED ({_PAGE}), moved AS (
    INSERT INTO cursors (sweep, place, after_key)
    SELECT 'progress', 'projects', CASE WHEN count(*) = %(limit)s
           THEN (SELECT owner || '/' || id FROM page ORDER BY owner DESC, id DESC LIMIT 1) ELSE '/' END FROM page
    ON CONFLICT (sweep) DO UPDATE SET after_key = excluded.after_key, moved_at = moment()
     WHERE cursors.after_key <> excluded.after_key)
SELECT owner, id FROM page WHERE differs
""")
def list_wrong_statuses(conn: Connection, limit: int = STATUSES_PER_RUN) -> list[ProjectKey]:
    """Check the next page of projects, after the last one the first, and return those with a wrong status."""


# Files expected of a job: the outputs of its chosen prediction; before that the number requested, else one. All files
# of a settled job count as done, kept or not. Those of a deleted render, or of a foreign host, are not expected. Of a
# job that succeeded at once all are placed: only others are read one by one.
GET_PROGRESS = f"""
WITH job AS MATERIALIZED (
    SELECT id, state, settled_at, chosen_id, variants, state = 'succeeded' AND reopened = 0 AND id NOT IN (
               SELECT id FROM renders WHERE deleted_at IS NOT NULL AND owner = %(owner)s) AS is_plain
      FROM jobs WHERE owner = %(owner)s AND project_id = %(id)s
), total AS MATERIALIZED (
    SELECT count(*) AS jobs, count(settled_at) AS settled,
           (SELECT count(*) FROM placements WHERE owner = %(owner)s AND project_id = %(id)s)
           - (SELECT count(*) FROM job JOIN placements f ON f.render_id = job.id WHERE NOT is_plain) AS files FROM job
)
SELECT {STATUS} AS status, jobs, settled, failed, placeholders, files + expected AS files_asked,
       files + kept AS files_kept, files_failed, files + done AS files_done
  FROM projects p, total, (
       SELECT count(*) FILTER (WHERE state IN ('failed', 'cancelled') AND r.id IS NULL) AS failed,
              count(*) FILTER (WHERE shown.placeholders > 0) AS placeholders,
              coalesce(sum(expected), 0)::bigint AS expected, coalesce(sum(shown.kept), 0)::bigint AS kept,
              coalesce(sum(CASE WHEN settled_at IS NULL THEN chosen.dead ELSE greatest(expected - chosen.kept, 0) END),
                       0)::bigint AS files_failed,
              coalesce(sum(CASE WHEN settled_at IS NULL THEN chosen.kept + chosen.dead ELSE expected END),
                       0)::bigint AS done
         FROM job LEFT JOIN renders r ON r.id = job.id
        CROSS JOIN LATERAL (
              SELECT count(*) AS files, count(*) FILTER (WHERE state = 'kept') AS kept,
                     count(*) FILTER (WHERE state IN ('dead', 'discarding', 'discarded')) AS dead
                FROM outputs o WHERE o.job_id = job.id AND o.prediction_id = chosen_id AND NOT o.is_placeholder
                                 AND o.category IS DISTINCT FROM 'FOREIGN_HOST') chosen
        CROSS JOIN LATERAL (SELECT coalesce(nullif(chosen.files, 0), variants, 1) AS expected) requested
        CROSS JOIN LATERAL (
              SELECT count(*) FILTER (WHERE NOT v.is_placeholder) AS kept,
                     count(*) FILTER (WHERE v.is_placeholder) AS placeholders
                FROM variants v WHERE v.render_id = job.id) shown
        WHERE NOT is_plain AND r.deleted_at IS NULL) other
 WHERE p.owner = %(owner)s AND p.id = %(id)s
"""


def get_progress(conn: Connection, project: ProjectKey) -> dict[str, Any]:
    """
    Return a project's status and numbers of jobs and files, by the names of GET_PROGRESS.

    `image_upload_progress`: percentage of files kept or failed: 100 only when all jobs are settled, 0 without files.
    """
    row = fetch_one(conn, GET_PROGRESS, project._asdict()) or {}
    files_done, files_asked = row.pop("files_done", 0), row.get("files_asked", 0)
    percent = files_done * 100 // files_asked if files_asked else 0
    is_settled = row.get("status") == "assets_generated"
    return {**row, "image_upload_progress": 100 if is_settled else min(percent, 99)}


@statement("""
SELECT id AS job_id, scene, state, category, reason, settled_at
  FROM jobs WHERE owner = %(owner)s AND project_id = %(id)s AND state IN ('failed', 'cancelled')
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = jobs.id) ORDER BY id LIMIT %(limit)s
""")
def list_failed_jobs(conn: Connection, project: ProjectKey, limit: int = 100) -> list[Row]: ...
