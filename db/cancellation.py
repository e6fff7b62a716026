"""Cancellation of a job's predictions and outputs."""

from uuid import UUID

from db.connection import Connection, fetch_all
from db.events import build_event_insert
from db.statements import statement


def build_cancel_statement(table: str, subject: str, from_state: str, values: str, condition: str = "true") -> str:
    """Return the statement that ends a job's rows in a state, leased or not: it clears the lease."""
    return f"""
WITH moved AS (
    UPDATE {table} SET {values}, reason = %(reason)s, run_at = NULL, ended_at = moment(),
           crashes = crashes - CASE WHEN lease_token IS NULL THEN 0 ELSE 1 END,
           lease_token = NULL, leased_by = NULL, leased_until = NULL
     WHERE job_id = %(job_id)s AND state = '{from_state}' AND {condition}
    RETURNING id, job_id, state
) {build_event_insert(subject, f"'{from_state}'", "state", "%(reason)s")}
"""


# A submit step that holds the lease loses it here: its next write raises LeaseLost, and no request is sent.
@statement(build_cancel_statement("predictions", "prediction", "planned", "state = 'cancelled', ended_by = 'us'"))
def cancel_planned(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> list[UUID]: ...


# A submission in progress completes first: without an external id it cannot be cancelled.
REQUEST_CANCELLATION = """
UPDATE predictions SET cancel_reason = %(reason)s, woken_at = NULL,
       run_at = CASE WHEN state = 'submitting' THEN run_at ELSE least(run_at, moment()) END
 WHERE job_id = %(job_id)s AND cancel_reason IS NULL
   AND (state IN ('submitting', 'running') OR (state = 'abandoned' AND external_id IS NOT NULL))
RETURNING id, state
"""


def request_cancellation(conn: Connection, job_id: UUID, *, reason: str) -> list[UUID]:
    """Have the poll step cancel a locked job's submitted predictions at their providers; return the ids now due."""
    rows = fetch_all(conn, REQUEST_CANCELLATION, {"job_id": job_id, "reason": reason})
    return [row["id"] for row in rows if row["state"] != "submitting"]


# A keep step that holds the lease gets LeaseLost when it commits.
CANCELLED = "state = 'dead', category = 'CANCELLED'"


@statement(build_cancel_statement("outputs", "output", "waiting", CANCELLED))
def cancel_waiting_outputs(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> list[UUID]:
    """End a locked job's waiting outputs, leased or not, without dead letters; return their ids."""
