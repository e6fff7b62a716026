"""What nobody wants any more: predictions that are not submitted, or whose providers are to be asked to stop them."""

from uuid import UUID

from db.connection import Connection, fetch_all


def _ending(table: str, subject: str, from_state: str, values: str) -> str:
    """Return the statement that ends a job's rows of a state, whoever holds them: the token goes with the state."""
    return f"""
WITH moved AS (
    UPDATE {table}
       SET {values}, reason = %(reason)s, run_at = NULL, ended_at = moment(),
           crashes = crashes - CASE WHEN lease_token IS NULL THEN 0 ELSE 1 END,
           lease_token = NULL, leased_by = NULL, leased_until = NULL
     WHERE job_id = %(job_id)s AND state = '{from_state}'
    RETURNING id, job_id, state
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT '{subject}', id, job_id, '{from_state}', state, %(reason)s, %(actor)s FROM moved
RETURNING subject_id AS id
"""


# A submission that is under way loses its lease with its plan: its write-back finds nothing, and no request is sent.
CANCEL_PLANNED = _ending("predictions", "prediction", "planned", "state = 'cancelled', ended_by = 'us'")


def cancel_planned(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> list[UUID]:
    """End a locked job's predictions that are not submitted yet; returns them."""
    args = {"job_id": job_id, "reason": reason, "actor": actor}
    return [row["id"] for row in fetch_all(conn, CANCEL_PLANNED, args)]


# One that is being submitted goes on with that: only then has it an id to be stopped by.
ASK_TO_STOP = """
UPDATE predictions
   SET cancel_reason = %(reason)s, woken_at = NULL,
       run_at = CASE WHEN state = 'submitting' THEN run_at ELSE least(run_at, moment()) END
 WHERE job_id = %(job_id)s AND cancel_reason IS NULL
   AND (state IN ('submitting', 'running') OR (state = 'abandoned' AND external_id IS NOT NULL))
RETURNING id, state
"""


def request_cancellation(conn: Connection, job_id: UUID, *, reason: str) -> list[UUID]:
    """Have the poll step ask the providers of a locked job's other predictions to stop; returns those due for it."""
    rows = fetch_all(conn, ASK_TO_STOP, {"job_id": job_id, "reason": reason})
    return [row["id"] for row in rows if row["state"] != "submitting"]


# A worker that keeps one finds nothing at its write-back.
END_WAITING = _ending("outputs", "output", "waiting", "state = 'dead', category = 'CANCELLED'")


def cancel_waiting_outputs(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> list[UUID]:
    """End a locked job's outputs that wait, whoever holds them; returns them. Nobody gave up: no dead letters."""
    args = {"job_id": job_id, "reason": reason, "actor": actor}
    return [row["id"] for row in fetch_all(conn, END_WAITING, args)]
