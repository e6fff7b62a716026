"""Queries of `moorage show`: resolve an id or name to rows, and read a row with its history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from db import deliveries, notifications, outputs, predictions
from db.connection import Connection, Row, fetch_all, fetch_one
from db.leases import SUBJECT
from db.statements import statement

MIN_PREFIX: Final = 8
MAX_MATCHES: Final = 10
MAX_EVENTS: Final = 1000


@dataclass(frozen=True, slots=True)
class RowMatch:
    subject: str
    id: UUID


# An id prefix is a range of ids: each branch reads the primary key.
_ID_TABLES: Final = {
    "job": "jobs",
    **{subject: table for table, subject in SUBJECT.items()},
    "upload": "uploads",
    "dead_letter": "dead_letters",
}
BY_ID: Final = (
    " UNION ALL ".join(
        f"SELECT '{subject}' AS subject, id FROM {table} WHERE id BETWEEN %(low)s AND %(high)s"
        for subject, table in _ID_TABLES.items()
    )
    + " LIMIT %(limit)s"
)

# The unique indexes begin with the provider.
BY_NAME: Final = """
SELECT 'prediction' AS subject, id FROM predictions
 WHERE provider = ANY(%(providers)s::text[]) AND external_id = %(name)s
UNION ALL
SELECT 'delivery', id FROM deliveries WHERE provider = ANY(%(providers)s::text[]) AND webhook_id = %(name)s
UNION ALL
SELECT 'delivery', id FROM deliveries
 WHERE state = 'unmatched' AND provider = ANY(%(providers)s::text[]) AND external_id = %(name)s
LIMIT %(limit)s
"""


def find_rows(conn: Connection, name: str, providers: Sequence[str]) -> list[RowMatch]:
    """Return up to 10 rows whose id begins with `name` (8 characters or more) or whose external or webhook id it is."""
    digits = name.lower().replace("-", "")
    rows: list[Row] = []
    if MIN_PREFIX <= len(digits) <= 32 and not set(digits) - set("0123456789abcdef"):
        low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
        rows = fetch_all(conn, BY_ID, {"low": low, "high": high, "limit": MAX_MATCHES})
    if not rows and providers:
        rows = fetch_all(conn, BY_NAME, {"name": name, "providers": list(providers), "limit": MAX_MATCHES})
    return list(dict.fromkeys(RowMatch(row["subject"], row["id"]) for row in rows))


UPLOAD: Final = """
SELECT id, owner, CASE WHEN deleted_at IS NULL THEN 'stored' ELSE 'deleted' END AS state, media, format, content_type,
       bytes, sha256, width_px, height_px, duration_s, key, created_at, deleted_at
  FROM uploads WHERE id = %(id)s
"""


ROWS: Final = {
    "delivery": f"{deliveries.DETAILS} WHERE d.id = %(id)s",
    "prediction": f"{predictions.DETAILS} WHERE id = %(id)s",
    "output": f"{outputs.DETAILS} WHERE id = %(id)s",
    "notification": f"{notifications.DETAILS} WHERE id = %(id)s",
}


def get_row(conn: Connection, match: RowMatch) -> Row | None:
    return fetch_one(conn, ROWS.get(match.subject, UPLOAD), {"id": match.id})


@statement("""
SELECT id, subject, subject_id, step, category, error, reason, retryable, state, created_at, closed_at, closed_by,
       acknowledged_at, acknowledged_by, note
  FROM dead_letters
 WHERE subject IN ('delivery', 'prediction', 'output', 'notification') AND subject_id = ANY(%(ids)s::uuid[])
 ORDER BY created_at, id
""")
def list_dead_letters(conn: Connection, ids: Sequence[UUID]) -> list[Row]: ...


@statement(f"""
SELECT id, subject, subject_id, from_state, to_state, reason, actor, at FROM events
 WHERE id IN (SELECT id FROM events WHERE job_id = %(job_id)s
              UNION SELECT id FROM events
                     WHERE subject IN ('delivery', 'prediction', 'output', 'notification', 'dead_letter')
                       AND subject_id = ANY(%(ids)s::uuid[]))
 ORDER BY at, id LIMIT {MAX_EVENTS}
""")
def list_timeline(conn: Connection, job_id: UUID | None, ids: Sequence[UUID]) -> list[Row]:
    """Return up to 1,000 events of a job with all its rows, and of the rows given by id, oldest first."""
