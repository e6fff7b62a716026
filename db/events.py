"""Events: every taken state edge, written in the transaction that took it."""

from uuid import UUID

from db.connect import Connection, Row, many

ADD = """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
VALUES (%(subject)s, %(subject_id)s, %(job_id)s, %(from_state)s, %(to_state)s, %(reason)s, %(actor)s)
"""


def add(
    conn: Connection,
    subject: str,
    subject_id: UUID,
    edge: tuple[str | None, str],
    *,
    actor: str,
    job_id: UUID | None = None,
    reason: str | None = None,
) -> None:
    """Record an edge that a statement of its own has taken."""
    args = {
        "subject": subject,
        "subject_id": subject_id,
        "job_id": job_id,
        "from_state": edge[0],
        "to_state": edge[1],
        "reason": reason,
        "actor": actor,
    }
    conn.execute(ADD, args)


OF_JOB = """
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at
  FROM events WHERE job_id = %(job_id)s ORDER BY id LIMIT %(limit)s
"""


def of_job(conn: Connection, job_id: UUID, limit: int = 1000) -> list[Row]:
    """Return the history of a job, its predictions and outputs, oldest first."""
    return many(conn, OF_JOB, {"job_id": job_id, "limit": limit})


OF = """
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at
  FROM events WHERE subject = %(subject)s AND subject_id = %(subject_id)s ORDER BY id LIMIT %(limit)s
"""


def of(conn: Connection, subject: str, subject_id: UUID, limit: int = 1000) -> list[Row]:
    """Return the history of one row, oldest first."""
    return many(conn, OF, {"subject": subject, "subject_id": subject_id, "limit": limit})


PAGE_OF_JOB = """
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at
  FROM events WHERE job_id = %(job_id)s AND id > %(after)s ORDER BY id LIMIT %(limit)s
"""


def page_of_job(conn: Connection, job_id: UUID, after: int, limit: int) -> list[Row]:
    """Return the history of a job behind an event, oldest first."""
    return many(conn, PAGE_OF_JOB, {"job_id": job_id, "after": after, "limit": limit})
