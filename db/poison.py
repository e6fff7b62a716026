"""Poison: rows that reached the crash limit. They become dead letters without being claimed again."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from db import dead_letters, deliveries, jobs, leases, predictions
from db.connection import Connection, fetch_one
from db.events import build_event_insert
from moorage.model import Job, Step, WorkTable
from moorage.retry_policy import DeadLetterDecision

CONTEXT: Final[Mapping[WorkTable, str]] = {
    "deliveries": "SELECT NULL::uuid AS job_id, provider, NULL AS path FROM deliveries WHERE id = %(id)s",
    "predictions": "SELECT job_id, provider, NULL AS path FROM predictions WHERE id = %(id)s",
    "outputs": """
SELECT o.job_id, p.provider, o.path, o.quarantine_key
  FROM outputs o JOIN predictions p ON p.id = o.prediction_id WHERE o.id = %(id)s
""",
    "notifications": "SELECT job_id, NULL AS provider, NULL AS path FROM notifications WHERE id = %(id)s",
}


def _build_end_statement(table: WorkTable, states: tuple[str, ...], values: str) -> str:
    return f"""
WITH old AS (
    SELECT id, state FROM {table}
     WHERE id = %(id)s AND state IN ({", ".join(f"'{state}'" for state in states)}) AND lease_token IS NULL
       AND crashes >= %(max_crashes)s FOR UPDATE
), moved AS (
    UPDATE {table} t SET {values}, reason = %(reason)s, run_at = NULL, ended_at = moment()
      FROM old WHERE t.id = old.id
    RETURNING t.id, old.state AS from_state, t.state AS to_state
) {build_event_insert(leases.SUBJECT[table], "from_state", "to_state", "%(reason)s", job_id="%(job_id)s")}
"""


END: Final[Mapping[WorkTable, str]] = {
    "deliveries": _build_end_statement("deliveries", deliveries.LIVE_STATES, "state = 'dead'"),
    "predictions": _build_end_statement(
        "predictions", predictions.LIVE_STATES, "state = 'lost', category = 'POISON', ended_by = 'us'"
    ),
    # The objects of a discarded output belong to no row: the orphan sweep deletes them.
    "outputs": _build_end_statement(
        "outputs",
        ("waiting", "discarding"),
        "state = CASE old.state WHEN 'waiting' THEN 'dead' ELSE 'discarded' END, category = 'POISON', key = NULL,"
        " thumb_key = NULL, thumb_bytes = NULL, thumb_sha256 = NULL",
    ),
    "notifications": _build_end_statement("notifications", ("waiting",), "state = 'dead', category = 'POISON'"),
}


def dead_letter(
    conn: Connection,
    table: WorkTable,
    row_id: UUID,
    decision: DeadLetterDecision,
    *,
    step: Step,
    max_crashes: int,
    actor: str,
) -> Job | None:
    """
    End an unleased row that reached the crash limit, with a dead letter.

    Return the job of a prediction or output, locked, for it to advance; None if the row no longer qualifies.
    """
    context = fetch_one(conn, CONTEXT[table], {"id": row_id})
    if context is None:
        return None
    job_id, provider = context["job_id"], context["provider"]
    job = jobs.lock(conn, job_id) if table in ("predictions", "outputs") else None
    args = {"id": row_id, "job_id": job_id, "reason": decision.reason, "max_crashes": max_crashes, "actor": actor}
    if fetch_one(conn, END[table], args) is None:
        return None
    subject = leases.SUBJECT[table]
    facts = {name: context[name] for name in ("path", "quarantine_key") if context.get(name)}
    dead_letters.add(
        conn, subject, row_id, decision, step=step, job_id=job_id, provider=provider, facts=facts, actor=actor
    )
    return job
