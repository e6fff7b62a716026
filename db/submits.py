"""Submissions: predictions that moorage itself has a provider make, from planned to running."""

from typing import Any
from uuid import UUID

from db.connect import Connection, one
from moorage import ids
from moorage.model import Entry, Job

PLAN = """
WITH made AS (
    INSERT INTO predictions (id, job_id, seq, entry, provider, model, state, deadline_at, run_at)
    SELECT %(id)s, j.id, (SELECT coalesce(max(seq) + 1, 0) FROM predictions WHERE job_id = j.id), %(entry)s,
           %(provider)s, %(model)s, 'planned', j.deadline_at, moment()
      FROM jobs j WHERE j.id = %(job_id)s
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT 'prediction', id, job_id, 'planned', %(reason)s, %(actor)s FROM made
RETURNING subject_id AS id
"""


def plan(conn: Connection, job_id: UUID, entry: int, wanted: Entry, *, reason: str | None, actor: str) -> UUID:
    """Insert the next prediction of a locked (or just inserted) job, to be submitted now; returns its id."""
    args: dict[str, Any] = {
        "id": ids.new(),
        "job_id": job_id,
        "entry": entry,
        "provider": wanted.provider,
        "model": wanted.model,
        "reason": reason,
        "actor": actor,
    }
    row = one(conn, PLAN, args)
    if row is None:
        raise LookupError(f"there is no job {job_id}")
    return UUID(str(row["id"]))


LAST_ENTRY = """
SELECT max(entry) AS entry FROM predictions WHERE job_id = %(job_id)s AND seq >= %(since)s
"""


def last_entry(conn: Connection, job_id: UUID, *, since_seq: int = 0) -> int | None:
    """Return the furthest entry of its chain that a job has come to; None: none yet."""
    row = one(conn, LAST_ENTRY, {"job_id": job_id, "since": since_seq})
    return row["entry"] if row else None


def entries(job: Job) -> list[Entry]:
    """Return a job's chain; empty where the application started the prediction itself."""
    return [Entry(**entry) for entry in job.chain or ()]
