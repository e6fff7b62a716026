"""Outputs whose objects are to be deleted: unpublished files of a job, and spooled inputs of settled jobs."""

from uuid import UUID

from db import leases
from db.connection import Connection, fetch_all
from db.events import build_event_insert
from db.statements import statement
from moorage.model import Lease


def build_discard_statement(condition: str) -> str:
    """Return the statement that sets a job's kept outputs to `discarding`."""
    return f"""
WITH moved AS (
    UPDATE outputs SET state = 'discarding', thumb_missing = NULL, reason = %(reason)s, {leases.RESTART}
     WHERE job_id = %(job_id)s AND state = 'kept' AND {condition}
    RETURNING id, job_id
) {build_event_insert("output", "'kept'", "'discarding'", "%(reason)s")}
"""


@statement(
    build_discard_statement(
        "(NOT is_placeholder OR %(include_placeholder)s)"
        " AND NOT EXISTS (SELECT FROM render_variants v WHERE v.output_id = outputs.id)"
    )
)
def mark_discarding(
    conn: Connection, job_id: UUID, reason: str, actor: str, *, include_placeholder: bool = False
) -> list[UUID]:
    """Set a locked job's kept, unpublished outputs to `discarding`; return their ids."""


@statement(
    leases.build_end_statement(
        "outputs", "discarding", "discarded", "key = NULL, thumb_key = NULL, thumb_bytes = NULL, thumb_sha256 = NULL"
    )
)
def end_discarded(conn: Connection, lease: Lease) -> None: ...


SPOOLED = """
SELECT o.id, o.source AS key FROM outputs o JOIN jobs j ON j.id = o.job_id
 WHERE o.source_kind = 'object' AND o.source IS NOT NULL AND o.ended_at IS NOT NULL AND j.settled_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM dead_letters l
                    WHERE l.subject = 'output' AND l.subject_id = o.id AND l.state = 'open')
 ORDER BY o.ended_at LIMIT 200
"""


def list_spooled_inputs(conn: Connection) -> list[tuple[UUID, str]]:
    """
    Return output id and key of up to 200 spooled input files of settled jobs still in the private bucket.

    Those of an open dead letter stay for its replay.
    """
    return [(row["id"], row["key"]) for row in fetch_all(conn, SPOOLED)]


@statement("UPDATE outputs SET source = NULL WHERE id = %(output_id)s AND source = %(key)s AND ended_at IS NOT NULL")
def clear_spooled_input(conn: Connection, output_id: UUID, key: str) -> None: ...
