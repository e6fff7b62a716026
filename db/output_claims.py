"""The claim of step keep: the most urgent due output, with all that the step reads before it downloads."""

import uuid
from typing import Final
from uuid import UUID

from db.connection import Connection, Database
from db.leases import SET_LEASE, UNPAUSED
from db.outputs import COLUMNS
from moorage.model import Lease, Output

_DUE: Final = "state = 'waiting' AND lease_token IS NULL AND run_at <= moment()"
_ALIVE: Final = "crashes < %(max_crashes)s"

# While something is paused, the named output alone, which dispatch has chosen: paused ones may be the most urgent, and
# each claim would read them all. The locks on job and project end with the claim. They are not waited for, so that the
# order of locks, job before output, is kept.
CLAIM = f"""
WITH urgent AS MATERIALIZED (
    SELECT id FROM outputs WHERE {_DUE} AND {_ALIVE} AND NOT EXISTS (SELECT FROM pauses)
     ORDER BY expires_at, run_at LIMIT 1 FOR UPDATE SKIP LOCKED
), named AS MATERIALIZED (
    SELECT id FROM outputs WHERE id = %(id)s AND {_DUE} AND {_ALIVE} AND {UNPAUSED["outputs"]}
                             AND NOT EXISTS (SELECT FROM urgent) FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE outputs SET {SET_LEASE} WHERE id = (SELECT id FROM urgent UNION ALL SELECT id FROM named)
    RETURNING {", ".join(COLUMNS)}, moment() AS claimed_at, attempt, crashes
), job AS MATERIALIZED (
    SELECT owner, project_id, state = 'keeping' AS is_keeping, chosen_id FROM jobs
     WHERE id = (SELECT job_id FROM claimed) FOR UPDATE SKIP LOCKED
), project AS MATERIALIZED (
    SELECT id FROM projects WHERE (owner, id) = (SELECT owner, project_id FROM job) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT claimed.*, p.provider, p.external_id, p.model,
       coalesce(job.is_keeping AND (is_placeholder OR prediction_id = job.chosen_id)
                AND (job.project_id IS NULL OR EXISTS (SELECT FROM project)), false) AS is_awaited,
       EXISTS (SELECT FROM outputs WHERE id = %(id)s AND {_DUE} AND NOT {_ALIVE} AND {UNPAUSED["outputs"]}) AS is_poison
  FROM (VALUES (true)) one LEFT JOIN claimed ON true LEFT JOIN predictions p ON p.id = claimed.prediction_id
  LEFT JOIN job ON true
"""


def claim(
    database: Database | Connection, row_id: UUID, *, leased_by: str, lease_seconds: float, max_crashes: int
) -> tuple[Lease | None, bool]:
    """
    Claim the most urgent due output, the named one if none is more urgent.

    Return the lease, and True if the named output is due but reached the crash limit.
    """
    token = uuid.uuid4()
    args = {"id": row_id, "token": token, "leased_by": leased_by, "lease_seconds": lease_seconds}
    (row,) = database.fetch_all(CLAIM, {**args, "max_crashes": max_crashes})
    names = ("is_poison", "claimed_at", "attempt", "crashes")
    is_poison, claimed_at, attempt, crashes = [row.pop(name) for name in names]
    if row["id"] is None:
        return None, is_poison
    return Lease("outputs", row["id"], token, leased_by, claimed_at, attempt, crashes, Output(**row)), is_poison
