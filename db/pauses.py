"""Pauses set by an operator. db/leases.py contains the condition that claims and dispatch apply."""

from datetime import datetime
from typing import Final
from uuid import UUID

from db.connection import Connection, Row
from db.events import build_event_insert
from db.leases import WAITING
from db.statements import statement

KEEP: Final = "keep"


# Of the events of pauses, whose targets are names, the subject is a hash of the name.


def _build_change(change: str, from_state: str, to_state: str) -> str:
    return f"""
WITH moved AS ({change} RETURNING md5('pause ' || target)::uuid AS id, target, paused_at, reason), event AS (
    {build_event_insert("pause", from_state, to_state, "concat_ws(': ', target, reason)", job_id="NULL::uuid")}
) SELECT paused_at FROM moved
"""


_INSERT: Final = """
INSERT INTO pauses (target, paused_by, reason) VALUES (%(target)s, %(actor)s, %(reason)s)
ON CONFLICT (target) DO NOTHING"""


@statement(_build_change(_INSERT, "NULL", "'paused'"))
def add(conn: Connection, target: str, *, actor: str, reason: str | None) -> datetime | None:
    """Pause a provider or `keep`; return the time, or None if it was already paused."""


@statement(_build_change("DELETE FROM pauses WHERE target = %(target)s", "'paused'", "'resumed'"))
def remove(conn: Connection, target: str, actor: str) -> datetime | None:
    """End a pause; return when it began, or None if there was none."""


# The lateral parts read the partial indexes of live rows.
@statement(f"""
SELECT s.target, s.paused_at, s.paused_by, s.reason, o.outputs, o.expires_at, p.predictions
  FROM pauses s
  CROSS JOIN LATERAL (
       SELECT count(*) AS outputs, min(w.expires_at) AS expires_at FROM outputs w
        WHERE w.state = 'waiting' AND w.lease_token IS NULL
          AND s.target IN ('keep', (SELECT provider FROM predictions WHERE id = w.prediction_id))) o
  CROSS JOIN LATERAL (
       SELECT count(*) AS predictions FROM predictions r
        WHERE {WAITING["predictions"]} AND r.provider = s.target) p
 ORDER BY s.paused_at, s.target
""")
def list_pauses(conn: Connection) -> list[Row]:
    """Return every pause, with the numbers of outputs and predictions it blocks and their first URL's expires_at."""


_BLOCKED: Final = {
    "outputs": """state = 'waiting'
       AND %(target)s IN ('keep', (SELECT provider FROM predictions p WHERE p.id = outputs.prediction_id))""",
    "predictions": f"{WAITING['predictions']} AND provider = %(target)s",
}
MAKE_DUE: Final = {
    table: f"""
WITH waiting AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE lease_token IS NULL AND (run_at > moment() OR woken_at IS NOT NULL) AND {condition}
     ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
UPDATE {table} t SET run_at = least(t.run_at, moment()), woken_at = NULL
  FROM waiting WHERE t.id = waiting.id RETURNING t.id
"""
    for table, condition in _BLOCKED.items()
}


@statement(MAKE_DUE)
def make_due(conn: Connection, table: str, target: str, *, limit: int) -> list[UUID]:
    """Make outputs or predictions that the pause of a target blocks due now; return the ids, at most `limit`."""
