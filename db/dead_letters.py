"""Dead letters: rows that moorage gave up on, with the reason; at most one open dead letter a row."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from db.connection import Connection, Row
from db.events import build_event_insert, records
from db.statements import statement
from moorage import ids
from moorage.model import DeadLetter
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable

FIRST: Final = UUID(int=2**128 - 1)  # pages begin with the newest: none has a dead letter that follows from a replay

_COLUMNS = """id, subject, subject_id, job_id, provider, step, category, error, reason, retryable, facts, state,
       created_at, closed_at, closed_by, acknowledged_at, acknowledged_by, note"""

# A message of the broker has no row.
ADD = f"""
WITH ended AS (
    SELECT 'delivery' AS subject, NULL::uuid AS job_id, provider FROM deliveries WHERE id = %(subject_id)s UNION ALL
    SELECT 'prediction', job_id, provider FROM predictions WHERE id = %(subject_id)s UNION ALL
    SELECT 'output', o.job_id, p.provider FROM outputs o JOIN predictions p ON p.id = o.prediction_id
     WHERE o.id = %(subject_id)s UNION ALL
    SELECT 'notification', job_id, NULL FROM notifications WHERE id = %(subject_id)s
), moved AS (
    INSERT INTO dead_letters (id, subject, subject_id, job_id, provider, step, category, error, reason, retryable,
                              facts)
    SELECT %(id)s, named.subject, %(subject_id)s, job_id, provider, %(step)s, %(category)s, %(error)s, %(reason)s,
           %(retryable)s, %(facts)s FROM (VALUES (%(subject)s)) named (subject) LEFT JOIN ended USING (subject)
    ON CONFLICT (subject, subject_id) WHERE state = 'open' DO NOTHING
    RETURNING id, job_id
) {build_event_insert("dead_letter", "NULL", "'open'", "%(reason)s")}
"""


def add(
    conn: Connection,
    subject: str,
    subject_id: UUID,
    decision: DeadLetterDecision,
    *,
    step: str,
    actor: str,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Insert an open dead letter; call it in the transaction that ends the row."""
    storable = {k: to_storable(v) if isinstance(v, str) else v for k, v in (facts or {}).items()}
    args = {**asdict(decision), "reason": to_storable(decision.reason), "facts": Jsonb(storable), "step": step}
    conn.execute(ADD, {"id": ids.uuid7(), "subject": subject, "subject_id": subject_id, "actor": actor, **args})


def build_close(state: str, reason: str, condition: str, source: str = "", first: str = "WITH") -> str:
    """Return the statement that closes open dead letters `d`, or with `first` a comma the end of one."""
    return f"""
{first} moved AS (
    UPDATE dead_letters d SET state = {state}, closed_at = moment(), closed_by = %(actor)s
      {source} WHERE d.state = 'open' AND {condition} RETURNING d.id, d.job_id
) {build_event_insert("dead_letter", "'open'", state, reason)}
"""


@statement(build_close("%(state)s", "NULL", "d.id = %(dead_letter_id)s"))
def close(conn: Connection, dead_letter_id: UUID, state: str, actor: str) -> bool:
    """Close an open dead letter as `replayed` or `discarded`; return False if it is not open."""


@records("dead_letter", "'open'", "'open'", "%(note)s")
@statement("""
UPDATE dead_letters SET acknowledged_at = moment(), acknowledged_by = %(actor)s, note = %(note)s
 WHERE id = %(dead_letter_id)s AND state = 'open' RETURNING id, job_id
""")
def acknowledge(conn: Connection, dead_letter_id: UUID, actor: str, note: str) -> bool:
    """Note that an operator knows an open dead letter, which is no problem then; return False if it is not open."""


@statement(build_close("'replayed'", "%(reason)s", "(d.subject, d.subject_id) = (%(subject)s, %(subject_id)s)"))
def close_by_subject(conn: Connection, subject: str, subject_id: UUID, *, reason: str, actor: str) -> None:
    """Close the open dead letter of a row that a late provider report made live again."""


@statement(f"SELECT {_COLUMNS} FROM dead_letters WHERE id = %(dead_letter_id)s")
def get(conn: Connection, dead_letter_id: UUID) -> DeadLetter | None: ...


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Filter criteria for dead letters, combined by AND; None means any."""

    state: str = "open"
    provider: str | None = None
    step: str | None = None
    category: str | None = None
    retryable: bool | None = None
    error: str | None = None
    job_id: UUID | None = None
    owner: str | None = None
    project_id: str | None = None
    since: datetime | None = None  # created at this time or later
    until: datetime | None = None  # created before this time
    ids: Sequence[UUID] | None = None


_MATCHES = """state = %(state)s AND (%(provider)s::text IS NULL OR provider = %(provider)s)
   AND (%(step)s::text IS NULL OR step = %(step)s) AND (%(category)s::text IS NULL OR category = %(category)s)
   AND (%(retryable)s::boolean IS NULL OR retryable = %(retryable)s)
   AND (%(job_id)s::uuid IS NULL OR job_id = %(job_id)s)
   AND (%(error)s::text IS NULL OR error = %(error)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR created_at < %(until)s)
   AND (%(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s::uuid[]))
   AND (%(owner)s::text IS NULL
        OR EXISTS (SELECT FROM jobs j WHERE j.id = dead_letters.job_id AND j.owner = %(owner)s))
   AND (%(project_id)s::text IS NULL
        OR EXISTS (SELECT FROM jobs j WHERE j.id = dead_letters.job_id AND j.project_id = %(project_id)s))"""


@statement(f"""
SELECT coalesce(provider, '-') AS provider, step, category, error, count(*) AS count,
       count(*) FILTER (WHERE retryable) AS retryable, min(created_at) AS oldest, max(created_at) AS newest,
       count(acknowledged_at) AS acknowledged, (array_agg(reason ORDER BY created_at DESC))[1] AS example
  FROM dead_letters WHERE {_MATCHES} GROUP BY 1, 2, 3, 4 ORDER BY count(*) DESC, 1, 2, 3, 4
""")
def count_groups(conn: Connection, criteria: DeadLetterFilter) -> list[Row]: ...


@statement(f"""
SELECT {_COLUMNS} FROM dead_letters
 WHERE {_MATCHES} ORDER BY created_at DESC, id LIMIT %(limit)s
""")
def list_newest(conn: Connection, criteria: DeadLetterFilter, *, limit: int) -> list[DeadLetter]: ...


@statement(f"SELECT id FROM dead_letters WHERE {_MATCHES} AND id < %(after)s ORDER BY id DESC LIMIT %(limit)s")
def list_ids(conn: Connection, criteria: DeadLetterFilter, *, after: UUID, limit: int) -> list[UUID]: ...


# A file in quarantine, or without a URL, does not expire.
@statement(f"""
SELECT count(*) AS matched,
       count(*) FILTER (WHERE expires_at BETWEEN moment() AND moment() + interval '10 min') AS expiring,
       count(*) FILTER (WHERE expires_at < moment()) AS expired
  FROM (SELECT (SELECT o.expires_at FROM outputs o
                 WHERE subject = 'output' AND o.id = subject_id AND o.quarantine_key IS NULL) AS expires_at
          FROM dead_letters WHERE {_MATCHES} AND id < %(after)s) selected
""")
def count_expiring(conn: Connection, criteria: DeadLetterFilter, after: UUID = FIRST) -> Row:
    """Return how many match, whose files' URLs expire within ten minutes, and have expired."""
