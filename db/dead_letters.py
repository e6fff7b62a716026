"""Dead letters: what moorage gave up on and why; at most one open a row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from db.connection import Connection, Row, fetch_all, fetch_one
from moorage import ids
from moorage.lifecycle import DeadLetterDecision
from moorage.model import DeadLetter
from moorage.text import to_storable

_COLUMNS = """id, subject, subject_id, job_id, provider, step, category, error, reason, retryable, facts, state,
       created_at, closed_at, closed_by"""

ADD = """
WITH made AS (
    INSERT INTO dead_letters (id, subject, subject_id, job_id, provider, step, category, error, reason, retryable,
                              facts)
    VALUES (%(id)s, %(subject)s, %(subject_id)s, %(job_id)s, %(provider)s, %(step)s, %(category)s, %(error)s,
            %(reason)s, %(retryable)s, %(facts)s)
    ON CONFLICT (subject, subject_id) WHERE state = 'open' DO NOTHING
    RETURNING id
)
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT 'dead_letter', id, %(job_id)s, 'open', %(reason)s, %(actor)s FROM made
"""


def add(
    conn: Connection,
    subject: str,
    subject_id: UUID,
    decision: DeadLetterDecision,
    *,
    step: str,
    actor: str,
    job_id: UUID | None = None,
    provider: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Open a dead letter, in the transaction that gives up on the row."""
    args: dict[str, Any] = {
        "id": ids.uuid7(),
        "subject": subject,
        "subject_id": subject_id,
        "job_id": job_id,
        "provider": provider,
        "step": step,
        "category": decision.category,
        "error": decision.error,
        "reason": to_storable(decision.reason),
        "retryable": decision.retryable,
        "facts": Jsonb({k: to_storable(v) if isinstance(v, str) else v for k, v in (facts or {}).items()}),
        "actor": actor,
    }
    conn.execute(ADD, args)


CLOSE = """
WITH moved AS (
    UPDATE dead_letters SET state = %(state)s, closed_at = moment(), closed_by = %(actor)s
     WHERE id = %(id)s AND state = 'open'
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)
SELECT 'dead_letter', id, job_id, 'open', %(state)s, %(actor)s FROM moved
RETURNING subject_id AS id
"""


def close(conn: Connection, dead_letter_id: UUID, state: str, actor: str) -> bool:
    """Close an open dead letter as replayed or discarded; False when it is closed already."""
    return fetch_one(conn, CLOSE, {"id": dead_letter_id, "state": state, "actor": actor}) is not None


CLOSE_OF = """
WITH moved AS (
    UPDATE dead_letters SET state = 'replayed', closed_at = moment(), closed_by = %(actor)s
     WHERE subject = %(subject)s AND subject_id = %(subject_id)s AND state = 'open'
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'dead_letter', id, job_id, 'open', 'replayed', %(reason)s, %(actor)s FROM moved
"""


def close_by_subject(conn: Connection, subject: str, subject_id: UUID, *, reason: str, actor: str) -> None:
    """Close the open dead letter of a row that came back to life by itself."""
    conn.execute(CLOSE_OF, {"subject": subject, "subject_id": subject_id, "reason": reason, "actor": actor})


GET = f"SELECT {_COLUMNS} FROM dead_letters WHERE id = %(id)s"


def get(conn: Connection, dead_letter_id: UUID) -> DeadLetter | None:
    """Return a dead letter."""
    row = fetch_one(conn, GET, {"id": dead_letter_id})
    return DeadLetter(**row) if row else None


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters are meant: those that fit all that is not None."""

    state: str = "open"
    provider: str | None = None
    step: str | None = None
    category: str | None = None
    retryable: bool | None = None
    job_id: UUID | None = None


_FITS = """state = %(state)s AND (%(provider)s::text IS NULL OR provider = %(provider)s)
   AND (%(step)s::text IS NULL OR step = %(step)s) AND (%(category)s::text IS NULL OR category = %(category)s)
   AND (%(retryable)s::boolean IS NULL OR retryable = %(retryable)s)
   AND (%(job_id)s::uuid IS NULL OR job_id = %(job_id)s)"""

GROUPS = f"""
SELECT coalesce(provider, '-') AS provider, step, category, error, count(*) AS count,
       count(*) FILTER (WHERE retryable) AS retryable, min(created_at) AS oldest, max(created_at) AS newest,
       (array_agg(reason ORDER BY created_at DESC))[1] AS example
  FROM dead_letters WHERE {_FITS}
 GROUP BY 1, 2, 3, 4 ORDER BY count(*) DESC, 1, 2, 3, 4
"""


def count_groups(conn: Connection, criteria: DeadLetterFilter) -> list[Row]:
    """Return the dead letters that are meant, counted by provider, step, category and error."""
    return fetch_all(conn, GROUPS, asdict(criteria))


LIST = f"""
SELECT {_COLUMNS} FROM dead_letters
 WHERE {_FITS}
 ORDER BY created_at DESC, id LIMIT %(limit)s
"""


def list_newest(conn: Connection, criteria: DeadLetterFilter, *, limit: int) -> list[DeadLetter]:
    """Return the newest dead letters that are meant."""
    return [DeadLetter(**row) for row in fetch_all(conn, LIST, {**asdict(criteria), "limit": limit})]


PAGE = f"""
SELECT id FROM dead_letters WHERE {_FITS} AND id > %(after)s ORDER BY id LIMIT %(limit)s
"""


def list_ids(conn: Connection, which: DeadLetterFilter, *, after: UUID, limit: int) -> list[UUID]:
    """Return the ids of those that are meant, oldest first, from behind one: for going through all of them."""
    return [row["id"] for row in fetch_all(conn, PAGE, {**asdict(which), "after": after, "limit": limit})]
