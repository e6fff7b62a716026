"""Notices: what an application is told by webhook, one for each end of a job that asked for it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db import leases
from db.connection import Connection, Row, fetch_all, fetch_one
from moorage.model import Lease

# Part of the statement that ends a job (jobs.MOVE), beside its `moved` and `told`.
ADD_FOR_JOB_END = """
noticed AS (
    INSERT INTO notices (id, event_id, job_id, type)
    SELECT %(notice_id)s, told.id, moved.id, 'job.' || moved.state FROM moved JOIN told ON told.subject_id = moved.id
     WHERE moved.notify AND moved.settled_at IS NOT NULL
    RETURNING id, job_id
), told_of_notice AS (
    INSERT INTO events (subject, subject_id, job_id, to_state, actor)
    SELECT 'notice', id, job_id, 'waiting', %(actor)s FROM noticed
)"""


@dataclass(frozen=True, slots=True)
class Notification:
    """One end of a job that the application is to be told of; `sequence` grows with every end of every job."""

    id: UUID
    sequence: int
    job_id: UUID
    type: str
    created_at: datetime


GET = "SELECT id, event_id AS sequence, job_id, type, created_at FROM notices WHERE id = %(id)s"


def get(conn: Connection, notification_id: UUID) -> Notification | None:
    """Return a notice."""
    row = fetch_one(conn, GET, {"id": notification_id})
    return Notification(**row) if row else None


OF_JOB = """
SELECT id, event_id, job_id, type, state, category, reason, created_at, run_at, attempt, crashes, leased_by,
       leased_until, ended_at
  FROM notices WHERE job_id = %(job_id)s ORDER BY event_id
"""


def list_by_job(conn: Connection, job_id: UUID) -> list[Row]:
    """Return the notices of a job, its first end first."""
    return fetch_all(conn, OF_JOB, {"job_id": job_id})


END_SENT = leases.build_end_statement("notices", "waiting", "sent", "category = NULL, reason = NULL")


def end_sent(conn: Connection, lease: Lease) -> None:
    """Record that the application took a notice; LeaseLost when another worker owns it."""
    leases.execute_end(conn, lease, END_SENT)


END_DEAD = leases.build_end_statement("notices", "waiting", "dead", "category = %(category)s, reason = %(reason)s")


def end_dead(conn: Connection, lease: Lease, category: str, reason: str) -> UUID:
    """Give up on a notice; returns its job. LeaseLost when another worker owns it."""
    return leases.execute_end(conn, lease, END_DEAD, category=category, reason=reason)


POISON = """
WITH moved AS (
    UPDATE notices
       SET state = 'dead', run_at = NULL, ended_at = moment(), category = 'POISON', reason = %(reason)s
     WHERE id = %(id)s AND state = 'waiting' AND lease_token IS NULL AND crashes >= %(max_crashes)s
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'notice', id, job_id, 'waiting', 'dead', %(reason)s, %(actor)s FROM moved
RETURNING job_id
"""


def poison(conn: Connection, notification_id: UUID, reason: str, *, max_crashes: int, actor: str) -> UUID | None:
    """End a notice whose workers keep dying; returns its job, None when it is no longer such a row."""
    row = fetch_one(conn, POISON, {"id": notification_id, "reason": reason, "max_crashes": max_crashes, "actor": actor})
    return UUID(str(row["job_id"])) if row else None


REPLAY = """
WITH moved AS (
    UPDATE notices
       SET state = 'waiting', run_at = moment(), woken_at = NULL, ended_at = NULL, attempt = 0, crashes = 0,
           category = NULL, reason = NULL
     WHERE id = %(id)s AND state = 'dead'
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'notice', id, job_id, 'dead', 'waiting', 'replayed', %(actor)s FROM moved
RETURNING subject_id AS id
"""


def replay(conn: Connection, notification_id: UUID, actor: str) -> bool:
    """Make a dead notice wait again; False when it is not dead."""
    return fetch_one(conn, REPLAY, {"id": notification_id, "actor": actor}) is not None
