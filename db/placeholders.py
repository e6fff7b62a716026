"""What a chain comes to when it brings nothing: the placeholder, made by no provider, that stands in for its files."""

from typing import Any, Final
from uuid import UUID

from db.connection import Connection, fetch_one
from moorage import ids

PROVIDER: Final = "placeholder"  # of the prediction that a placeholder belongs to

# Its prediction has the job's id as the provider's id: so there is at most one a job. Its reason is the chain's end.
ADD_PREDICTION = """
WITH made AS (
    INSERT INTO predictions (id, job_id, seq, provider, external_id, reason, state, deadline_at, ended_at, ended_by)
    SELECT %(id)s, j.id, (SELECT coalesce(max(seq) + 1, 0) FROM predictions WHERE job_id = j.id), %(provider)s,
           j.id::text, %(reason)s, 'succeeded', moment(), moment(), 'us'
      FROM jobs j WHERE j.id = %(job_id)s
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT 'prediction', id, job_id, 'succeeded', 'the chain brought nothing: a placeholder', %(actor)s FROM made
RETURNING subject_id AS id
"""

# Its bytes are made when it is kept: no transaction waits for a picture to be drawn.
ADD_OUTPUT = """
WITH made AS (
    INSERT INTO outputs (id, job_id, prediction_id, idx, path, is_placeholder, source_kind, state, run_at)
    SELECT %(id)s, %(job_id)s, %(prediction_id)s,
           (SELECT coalesce(max(idx) + 1, 0) FROM outputs WHERE job_id = %(job_id)s), 'placeholder', true, 'inline',
           'waiting', moment()
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT 'output', id, job_id, 'waiting', 'placeholder', %(actor)s FROM made
RETURNING subject_id AS id
"""


def add_prediction(conn: Connection, job_id: UUID, reason: str, actor: str) -> UUID:
    """Insert the prediction that a locked job's placeholder belongs to, with why it was needed; returns its id."""
    return _made(conn, ADD_PREDICTION, {"job_id": job_id, "provider": PROVIDER, "reason": reason, "actor": actor})


def add_output(conn: Connection, job_id: UUID, prediction_id: UUID, actor: str) -> UUID:
    """Insert the placeholder itself, to be kept as any output; returns its id."""
    return _made(conn, ADD_OUTPUT, {"job_id": job_id, "prediction_id": prediction_id, "actor": actor})


def _made(conn: Connection, sql: str, args: dict[str, Any]) -> UUID:
    row = fetch_one(conn, sql, {"id": ids.uuid7(), **args})
    if row is None:
        raise LookupError(f"there is no job {args['job_id']}")
    return UUID(str(row["id"]))


PLACEHOLDER = "SELECT prediction_id, state FROM outputs WHERE job_id = %(job_id)s AND is_placeholder"


def get_placeholder(conn: Connection, job_id: UUID) -> tuple[UUID, str] | None:
    """Return the prediction and the state of a job's placeholder; None: it has none."""
    row = fetch_one(conn, PLACEHOLDER, {"job_id": job_id})
    return (row["prediction_id"], row["state"]) if row else None


SHOWS_PLACEHOLDER = """
SELECT j.id FROM jobs j JOIN predictions p ON p.id = j.chosen_id
 WHERE j.id = %(job_id)s AND p.provider = %(provider)s
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id AND r.deleted_at IS NOT NULL)
"""


def is_placeholder_chosen(conn: Connection, job_id: UUID) -> bool:
    """Return whether what a locked job has chosen is its placeholder, and nobody has deleted that."""
    return fetch_one(conn, SHOWS_PLACEHOLDER, {"job_id": job_id, "provider": PROVIDER}) is not None


WHY = "SELECT reason FROM predictions WHERE job_id = %(job_id)s AND provider = %(provider)s"


def get_reason(conn: Connection, job_id: UUID) -> str | None:
    """Return why a job's placeholder was needed; None: it has none."""
    row = fetch_one(conn, WHY, {"job_id": job_id, "provider": PROVIDER})
    return row["reason"] if row else None
