"""Placeholders: images published when no entry of the fallback chain produced files."""

from typing import Final
from uuid import UUID

from db.connection import Connection
from db.events import records
from db.statements import statement

PROVIDER: Final = "placeholder"  # of the prediction that a placeholder belongs to


# The job's id as external id limits placeholders to one a job. `reason` is why the fallback chain failed.
@records("prediction", "NULL", "'succeeded'", "'fallback chain yielded no files: placeholder'")
@statement(f"""
INSERT INTO predictions (id, job_id, seq, provider, external_id, reason, state, deadline_at, ended_at, ended_by)
SELECT %(new_id)s, j.id, (SELECT coalesce(max(seq) + 1, 0) FROM predictions WHERE job_id = j.id), '{PROVIDER}',
       j.id::text, %(reason)s, 'succeeded', moment(), moment(), 'us'
  FROM jobs j WHERE j.id = %(job_id)s RETURNING id, job_id
""")
def add_prediction(conn: Connection, new_id: UUID, job_id: UUID, reason: str, actor: str) -> UUID:
    """Insert the prediction of a locked job's placeholder; return its id. `reason`: why the fallback chain failed."""


# The keep step renders the image: no transaction waits for that.
@records("output", "NULL", "'waiting'", "'placeholder'")
@statement("""
INSERT INTO outputs (id, job_id, prediction_id, idx, path, is_placeholder, source_kind, state, run_at, woken_at)
SELECT %(new_id)s, %(job_id)s, %(prediction_id)s,
       (SELECT coalesce(max(idx) + 1, 0) FROM outputs WHERE job_id = %(job_id)s), 'placeholder', true, 'inline',
       'waiting', moment(), moment() RETURNING id, job_id
""")
def add_output(conn: Connection, new_id: UUID, job_id: UUID, prediction_id: UUID, actor: str) -> UUID: ...


@statement("SELECT prediction_id, state FROM outputs WHERE job_id = %(job_id)s AND is_placeholder")
def get_placeholder(conn: Connection, job_id: UUID) -> tuple[UUID, str] | None: ...


@statement(f"""
SELECT j.id FROM jobs j JOIN predictions p ON p.id = j.chosen_id
 WHERE j.id = %(job_id)s AND p.provider = '{PROVIDER}'
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id AND r.deleted_at IS NOT NULL)
""")
def is_placeholder_chosen(conn: Connection, job_id: UUID) -> bool:
    """Return True if the chosen prediction of a locked job is its placeholder and its render is not deleted."""


@statement(f"SELECT reason FROM predictions WHERE job_id = %(job_id)s AND provider = '{PROVIDER}'")
def get_reason(conn: Connection, job_id: UUID) -> str | None:
    """Return the reason a job's placeholder was needed, or None without a placeholder."""
