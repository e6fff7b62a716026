"""Events: every taken state edge, written in the transaction that took it."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from db.connection import Connection, Row, fetch_all, fetch_one

ADD = """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
VALUES (%(subject)s, %(subject_id)s, %(job_id)s, %(from_state)s, %(to_state)s, %(reason)s, %(actor)s)
"""

MAX_ID_SPAN: Final = (
    500  # ids a page goes through, so that a filter that finds nothing costs no more than one that finds all
)

LAST_DRAWN = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS id FROM events_id_seq"

WRITERS = """
SELECT virtualtransaction AS writer
  FROM pg_locks
 WHERE locktype = 'relation' AND relation = 'events'::regclass AND mode = 'RowExclusiveLock' AND granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def add(
    conn: Connection,
    subject: str,
    subject_id: UUID,
    transition: tuple[str | None, str],
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
        "from_state": transition[0],
        "to_state": transition[1],
        "reason": reason,
        "actor": actor,
    }
    conn.execute(ADD, args)


OF_JOB = """
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at
  FROM events WHERE job_id = %(job_id)s ORDER BY id LIMIT %(limit)s
"""


def list_by_job(conn: Connection, job_id: UUID, limit: int = 1000) -> list[Row]:
    """Return the history of a job, its predictions and outputs, oldest first."""
    return fetch_all(conn, OF_JOB, {"job_id": job_id, "limit": limit})


OF = """
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at
  FROM events WHERE subject = %(subject)s AND subject_id = %(subject_id)s ORDER BY id LIMIT %(limit)s
"""


def list_by_subject(conn: Connection, subject: str, subject_id: UUID, limit: int = 1000) -> list[Row]:
    """Return the history of one row, oldest first."""
    return fetch_all(conn, OF, {"subject": subject, "subject_id": subject_id, "limit": limit})


PAGE_OF_JOB = """
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at
  FROM events WHERE job_id = %(job_id)s AND id > %(after)s ORDER BY id LIMIT %(limit)s
"""


def list_page_by_job(conn: Connection, job_id: UUID, after: int, limit: int) -> list[Row]:
    """Return the history of a job behind an event, oldest first."""
    return fetch_all(conn, PAGE_OF_JOB, {"job_id": job_id, "after": after, "limit": limit})


# The events of all jobs in an order that loses none: who reads on from the last id it saw may pass over a lower one.
#
# An id is drawn before COMMIT, so a higher one may be visible while a lower one is still to come. Whoever inserts an
# event takes the table's ROW EXCLUSIVE lock before it draws the id and holds it to the end of its transaction. So: read
# the last id drawn, then who holds that lock. When none of those holds it any more, every id up to the one read is
# visible or never will be. (The same by transaction ids, `pg_snapshot_xmin`, waits for every writing transaction of the
# whole server, other databases included, and needs the writer to have an id of its own before it draws the event's.)


@dataclass(frozen=True, slots=True)
class Watermark:
    """An event id, and the transactions that may still bring one up to it."""

    event_id: int
    writers: frozenset[str]


def read_watermark(conn: Connection) -> Watermark:
    """Return the last id drawn and who writes events, asked in this order."""
    event_id = get_last_id(conn)
    return Watermark(event_id, _writers(conn))


def is_final(conn: Connection, watermark: Watermark) -> bool:
    """Return whether every event up to a mark is visible to later statements, or never will be."""
    return not watermark.writers or not watermark.writers & _writers(conn)


def get_last_id(conn: Connection) -> int:
    """Return the highest id that was drawn, 0 before the first."""
    row = fetch_one(conn, LAST_DRAWN, {})
    return int(row["id"]) if row else 0


OLDEST = "SELECT min(id) AS id FROM events"


def get_oldest_id(conn: Connection) -> int | None:
    """Return the lowest id that retention has left; None without events."""
    row = fetch_one(conn, OLDEST, {})
    return row["id"] if row else None


PAGE = """
SELECT e.id, e.subject, e.subject_id, e.job_id, j.owner, e.from_state, e.to_state, e.reason, e.at
  FROM events e LEFT JOIN jobs j ON j.id = e.job_id
 WHERE e.id > %(after)s AND e.id <= %(until)s
   AND (%(job_id)s::uuid IS NULL OR e.job_id = %(job_id)s)
   AND (%(owner)s::text IS NULL OR j.owner = %(owner)s)
 ORDER BY e.id
"""


def list_between(
    conn: Connection, after: int, until: int, *, job_id: UUID | None = None, owner: str | None = None
) -> list[Row]:
    """
    Return the events behind an id, in the order of ids: all of them, a job's, or an owner's.

    Args:
        until: final (`is_final`), and at most SPAN behind `after`.
    """
    args: dict[str, Any] = {"after": after, "until": until, "job_id": job_id, "owner": owner}
    return fetch_all(conn, PAGE, args)


def _writers(conn: Connection) -> frozenset[str]:
    return frozenset(row["writer"] for row in fetch_all(conn, WRITERS))
