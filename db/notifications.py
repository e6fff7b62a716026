"""Notifications: outbound webhooks, one for each time a job ends that requested them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db import dead_letters, leases
from db.connection import Connection, Row
from db.events import build_event_insert
from db.statements import statement
from moorage.model import Lease, Step
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable

# Part of jobs.CHANGE_STATE, after its CTEs `moved` and `event`.
ADD_FOR_JOB_END = """
notified AS (
    INSERT INTO notifications (id, event_id, job_id, type)
    SELECT moved.notification_id, event.id, moved.id, 'job.' || moved.state
      FROM moved JOIN event ON event.subject_id = moved.id
     WHERE moved.notify AND moved.settled_at IS NOT NULL
    RETURNING id, job_id
), notification_event AS (
    INSERT INTO events (subject, subject_id, job_id, to_state, actor)
    SELECT 'notification', id, job_id, 'waiting', %(actor)s FROM notified
)"""


@dataclass(frozen=True, slots=True)
class Notification:
    """One end of a job. `sequence` increases with every end of every job."""

    id: UUID
    sequence: int
    job_id: UUID
    type: str
    created_at: datetime
    url: str | None = None  # None: the first of MOORAGE_NOTIFY_URL


@statement("""
SELECT n.id, n.event_id AS sequence, n.job_id, n.type, n.created_at, j.notify_url AS url
  FROM notifications n JOIN jobs j ON j.id = n.job_id WHERE n.id = %(notification_id)s
""")
def get(conn: Connection, notification_id: UUID) -> Notification | None: ...


DETAILS = """
SELECT id, event_id, job_id, type, state, category, reason, created_at, run_at, attempt, crashes, leased_by,
       leased_until, ended_at
  FROM notifications
"""


@statement(f"{DETAILS} WHERE job_id = %(job_id)s ORDER BY event_id")
def list_by_job(conn: Connection, job_id: UUID) -> list[Row]: ...


@statement(leases.build_end_statement("notifications", "waiting", "sent", "category = NULL, reason = NULL"))
def end_sent(conn: Connection, lease: Lease) -> None: ...


END_DEAD = leases.build_end_statement(
    "notifications", "waiting", "dead", "category = %(category)s, reason = %(reason)s"
)


def dead_letter(
    conn: Connection, lease: Lease, decision: DeadLetterDecision, *, step: Step, facts: Mapping[str, object]
) -> None:
    """End a leased notification as `dead`, with a dead letter. Raises LeaseLost."""
    reason, actor = to_storable(decision.reason), lease.leased_by
    leases.execute(conn, lease, END_DEAD, category=decision.category, reason=reason)
    facts = {"attempts": lease.attempt, **facts}
    dead_letters.add(conn, "notification", lease.row_id, decision, step=step, facts=facts, actor=actor)


@statement(f"""
WITH ended AS MATERIALIZED (
    SELECT id, state FROM notifications WHERE id = %(notification_id)s AND state = ANY(%(states)s::text[]) FOR UPDATE
), moved AS (
    UPDATE notifications n
       SET state = 'waiting', category = NULL, reason = NULL, {leases.RESTART}
      FROM ended WHERE n.id = ended.id
    RETURNING n.id, n.job_id, ended.state AS was
) {build_event_insert("notification", "was", "'waiting'", "'replayed'")}
""")
def replay(conn: Connection, notification_id: UUID, actor: str, states: Sequence[str] = ("dead",)) -> bool:
    """Reset a notification that ended to `waiting`; return False if it is in none of the states."""
