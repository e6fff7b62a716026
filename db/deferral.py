"""
Deferred outputs: files that their job no longer waits for, while attempts at them go on.

Such an output is `waiting` with `deferred_at`. For its job it counts as dead, until its file is stored. One without a
category has not failed: it is in reserve, of a success that was late for a job whose other files are being stored.
"""

from typing import Final
from uuid import UUID

from db import breakers, cancellation, dead_letters, jobs, leases
from db.connection import Connection, QueuedQuery, fetch_all
from db.events import build_event_insert, records
from db.outputs import build_category
from db.statements import statement
from moorage.errors import LeaseLost
from moorage.model import Job, Lease
from moorage.retry_policy import DeadLetterDecision

DEFER = f"""
WITH moved AS (
    UPDATE outputs SET deferred_at = moment(), {build_category("%(category)s")}
     WHERE id = %(id)s AND lease_token = %(token)s RETURNING id, job_id
) {build_event_insert("output", "'waiting'", "'waiting'", "%(reason)s", kind="'deferred'")}
"""


@statement("SELECT job_id FROM outputs WHERE id = %(output_id)s")
def _get_job_id(conn: Connection, output_id: UUID) -> UUID | None: ...


def defer(conn: Connection, lease: Lease, category: str) -> Job:
    """Have the job of a leased output no longer wait for it; return the job, locked. Raises LeaseLost."""
    job_id = _get_job_id(conn, lease.row_id)
    if job_id is None:
        raise LeaseLost(f"output {lease.row_id} is deleted")
    job = jobs.lock(conn, job_id)
    leases.execute(conn, lease, DEFER, category=category, reason="its job no longer waits for it")
    return job


@records("output", "'waiting'", "'waiting'", "'its job no longer waits for it'", kind="'deferred'")
@statement(f"""
UPDATE outputs SET deferred_at = moment(), {build_category("'DOWNLOAD_FAILED'")}
 WHERE job_id = %(job_id)s AND state = 'waiting' AND deferred_at IS NULL AND lease_token IS NULL
   AND {breakers.HOST} = ANY (ARRAY(SELECT host FROM {breakers.OPEN_HOSTS}
                                     WHERE opened_at <= moment() - make_interval(secs => %(seconds)s)))
RETURNING id, job_id
""")
def defer_blocked(conn: Connection, job_id: UUID, *, seconds: float, actor: str) -> QueuedQuery:
    """Have a locked job no longer wait for outputs whose hosts' circuit breakers have been open for `seconds`."""


# A keep step that is at work on one of them goes on; its file counts for the job again. `woken_at`: the caller
# publishes their wakes, as after every change that makes outputs due.
@records("output", "'waiting'", "'waiting'", "'its job waits for it again'", kind="'resumed'")
@statement("""
UPDATE outputs SET deferred_at = NULL, woken_at = moment(), run_at = least(run_at, moment()),
       attempt = CASE WHEN lease_token IS NULL THEN 0 ELSE attempt END,
       crashes = CASE WHEN lease_token IS NULL THEN 0 ELSE crashes END
 WHERE job_id = %(job_id)s AND prediction_id = %(chosen_id)s AND state = 'waiting' AND deferred_at IS NOT NULL
RETURNING id, job_id
""")
def resume(conn: Connection, job_id: UUID, chosen_id: UUID, actor: str) -> list[UUID]:
    """Have a locked job wait again for the deferred outputs of a prediction, now due; return them."""


@statement("""
SELECT prediction_id FROM outputs
 WHERE job_id = %(job_id)s AND state = 'waiting' AND deferred_at IS NOT NULL AND category IS NULL ORDER BY id LIMIT 1
""")
def get_reserve(conn: Connection, job_id: UUID) -> UUID:
    """Return the first prediction with outputs in reserve, of a locked job that has some."""


@statement("""
UPDATE outputs SET woken_at = moment(), run_at = moment()
 WHERE job_id = %(job_id)s AND state = 'waiting' AND deferred_at IS NOT NULL AND lease_token IS NULL RETURNING id
""")
def make_due(conn: Connection, job_id: UUID) -> list[UUID]: ...


_DEFERRED: Final = "deferred_at IS NOT NULL"


# A keep step that holds the lease gets LeaseLost when it commits.
@statement(
    cancellation.build_cancel_statement(
        "outputs", "output", "waiting", cancellation.CANCELLED, f"{_DEFERRED} AND prediction_id <> %(chosen_id)s"
    )
)
def cancel_others(conn: Connection, job_id: UUID, chosen_id: UUID | None, *, reason: str, actor: str) -> list[UUID]:
    """End a locked job's deferred outputs of predictions that were not chosen, without dead letters; return them."""


LIST_INCOMPLETE = f"""
SELECT o.id, o.path, o.attempt, coalesce(o.reason, 'requests to its host fail') AS reason,
       CASE o.category WHEN 'FOREIGN_HOST' THEN 'DOWNLOAD_FAILED' ELSE o.category END AS category
  FROM outputs o WHERE o.job_id = %(id)s AND o.state = 'waiting' AND o.{_DEFERRED} AND o.category IS NOT NULL
   AND EXISTS (SELECT FROM outputs s WHERE s.prediction_id = o.prediction_id AND s.state <> 'waiting'
                                       AND s.category IS DISTINCT FROM 'FOREIGN_HOST')
   AND NOT EXISTS (SELECT FROM outputs s
                    WHERE s.prediction_id = o.prediction_id AND s.state = 'waiting' AND s.deferred_at IS NULL)
 ORDER BY o.id
"""
END_INCOMPLETE = cancellation.build_cancel_statement("outputs", "output", "waiting", "state = 'dead'", "id = %(id)s")


def end_incomplete_outputs(conn: Connection, job: Job, actor: str) -> None:
    """
    Give up the deferred outputs of a locked job with policy `discard` that cannot complete their prediction's files.

    Another file of the prediction has ended without them: with their dead letters it can be replayed.
    """
    for row in fetch_all(conn, LIST_INCOMPLETE, {"id": job.id}):
        decision = DeadLetterDecision(row["category"], "Deferred", row["reason"], retryable=True)
        args = {"id": row["id"], "job_id": job.id, "reason": decision.reason, "actor": actor}
        conn.execute(END_INCOMPLETE, args)
        facts = {"path": row["path"], "attempts": row["attempt"]}
        dead_letters.add(conn, "output", row["id"], decision, step="keep", facts=facts, actor=actor)
