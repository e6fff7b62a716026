"""Predictions: runs at providers. Their state only moves forward."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from db import dead_letters, jobs, leases
from db.connection import Connection, QueuedQuery, Row, fetch_one
from db.events import build_event_insert, records
from db.leases import CLEAR_LEASE
from db.statements import statement
from moorage.errors import LeaseLost
from moorage.model import Job, Lease, Prediction, Step
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable

LIVE_STATES = ("planned", "submitting", "running", "abandoned")

_COLUMNS = (
    "id, job_id, seq, provider, external_id, state, created_at, deadline_at, output_until, polls, model, entry,"
    " key_sha256, submitted_at, cancel_reason, was_without_files, is_announced"
)
# What decides about a report, under the lock of the job.
_WITH_FACTS: Final = f"""
SELECT {_COLUMNS}, EXISTS (SELECT FROM renders r WHERE r.id = p.job_id) AS has_render,
       EXISTS (SELECT FROM predictions o WHERE o.job_id = p.job_id AND o.id <> p.id) AS has_others,
       EXISTS (SELECT FROM dead_letters d
                WHERE d.subject = 'prediction' AND d.subject_id = p.id AND d.state = 'open') AS has_dead_letter
  FROM predictions p"""


@statement(f"""{_WITH_FACTS}
 WHERE (provider, external_id) IN (SELECT * FROM unnest(%(providers)s::text[], %(external_ids)s::text[])) /* planned */
""")
def find(conn: Connection, providers: Sequence[str], external_ids: Sequence[str]) -> list[Prediction]: ...


def find_by_external_id(conn: Connection, provider: str, external_id: str) -> Prediction | None:
    return next(iter(find(conn, [provider], [external_id])), None)


@statement("UPDATE predictions SET model = %(model)s WHERE id = %(prediction_id)s AND model IS NULL")
def queue_model(conn: Connection, prediction_id: UUID, model: str) -> QueuedQuery:
    """Record the model of a prediction that was registered without one, as its provider reports it."""


@statement(f"SELECT {_COLUMNS} FROM predictions WHERE id = %(prediction_id)s")
def get(conn: Connection, prediction_id: UUID) -> Prediction | None: ...


@statement(f"{_WITH_FACTS} WHERE id = %(prediction_id)s FOR UPDATE OF p")
def lock(conn: Connection, prediction_id: UUID) -> Prediction:
    """Lock a prediction; lock its job first."""


@statement("""
UPDATE predictions SET raw_status = %(raw_status)s, was_without_files = %(without_files)s, is_announced = %(announced)s
 WHERE id = %(prediction_id)s AND ended_at IS NULL
""")
def record_status(
    conn: Connection, prediction_id: UUID, raw_status: str, without_files: bool = False, announced: bool = False
) -> None: ...


# This also clears the lease of a concurrent poll, whose own commit then raises LeaseLost.
END = f"""
WITH moved AS (
    UPDATE predictions p
       SET state = %(to_state)s, category = %(category)s, reason = %(reason)s, ended_by = %(ended_by)s,
           raw_status = coalesce(e.raw_status, p.raw_status), run_at = NULL, ended_at = moment(),
           was_without_files = coalesce(%(without_files)s, was_without_files),
           lease_token = NULL, leased_by = NULL, leased_until = NULL,
           crashes = crashes - CASE WHEN lease_token IS NULL THEN 0 ELSE 1 END
      FROM unnest(%(ids)s::uuid[], %(from_states)s::text[], %(raw_statuses)s::text[]) AS e (id, from_state, raw_status)
     WHERE p.id = e.id AND p.state = e.from_state
    RETURNING p.id, p.job_id, e.from_state
) {build_event_insert("prediction", "from_state", "%(to_state)s", "%(reason)s")} /* planned */
"""


def end(
    conn: Connection,
    prediction: Prediction,
    to_state: str,
    *,
    ended_by: str,
    actor: str,
    category: str | None = None,
    reason: str | None = None,
    raw_status: str | None = None,
    without_files: bool | None = None,
) -> None:
    args = build_end([(prediction, raw_status)], to_state, ended_by=ended_by, category=category, reason=reason)
    if fetch_one(conn, END, {**args, "without_files": without_files, "actor": actor}) is None:
        raise LookupError(f"prediction {prediction.id} is not {prediction.state}: it was not locked")


def build_end(
    ended: Sequence[tuple[Prediction, str | None]],
    to_state: str,
    *,
    ended_by: str,
    category: str | None = None,
    reason: str | None = None,
) -> Row:
    """Return the arguments of END for locked predictions, each with its raw status."""
    columns = {"ids": [row.id for row, _ in ended], "from_states": [row.state for row, _ in ended]}
    result = {"to_state": to_state, "ended_by": ended_by, "category": category, "reason": reason}
    return {**columns, **result, "raw_statuses": [status for _, status in ended]}


@statement(f"""
UPDATE predictions SET {CLEAR_LEASE}, polls = polls + CASE WHEN %(was_polled)s THEN 1 ELSE 0 END, woken_at = NULL,
       attempt = crashes - 1, reason = CASE WHEN state = 'running' THEN %(reason)s ELSE reason END,
       run_at = least(moment() + make_interval(secs => %(wait_seconds)s),
                      greatest(CASE WHEN state = 'abandoned' THEN output_until ELSE deadline_at END, moment()))
 WHERE id = %(id)s AND lease_token = %(token)s RETURNING id
""")
def schedule_next_poll(
    conn: Connection, lease: Lease, *, wait_seconds: float, was_polled: bool, reason: str | None
) -> None:
    """Release a polled prediction until its next poll, at the latest at its deadline. Raises LeaseLost."""


def build_abandon(from_state: str, values: str) -> str:
    """Return the statement that abandons a leased prediction; `values` are further assignments."""
    end = "moment() + make_interval(secs => %(output_life_seconds)s)"
    return f"""
WITH moved AS (
    UPDATE predictions SET state = 'abandoned', {CLEAR_LEASE}, woken_at = NULL, attempt = crashes - 1,
           reason = %(reason)s, output_until = {end}, {values},
           run_at = least({end}, moment() + make_interval(secs => %(next_poll_seconds)s::float8))  -- NULL: no poll
     WHERE id = %(id)s AND lease_token = %(token)s AND state = '{from_state}'
    RETURNING id, job_id
) {build_event_insert("prediction", f"'{from_state}'", "'abandoned'", "%(reason)s")}
"""


@statement(build_abandon("running", "category = 'TIMED_OUT'"))
def abandon(
    conn: Connection, lease: Lease, *, output_life_seconds: float, next_poll_seconds: float | None, reason: str
) -> None:
    """Stop waiting for a prediction; a late result still counts during `output_life_seconds`. Raises LeaseLost."""


@statement("""
SELECT id FROM predictions WHERE job_id = %(job_id)s AND state IN ('planned', 'submitting', 'running') ORDER BY id
""")
def list_awaited(conn: Connection, job_id: UUID) -> list[UUID]:
    """Return the ids of a job's predictions that may still produce files before their deadline."""


@statement("""
UPDATE predictions SET run_at = moment(), woken_at = NULL
 WHERE job_id = %(job_id)s AND state = 'running' AND lease_token IS NULL
   AND run_at > moment() RETURNING id
""")
def make_due_by_job(conn: Connection, job_id: UUID) -> list[UUID]:
    """Make a job's running predictions due now; return the ids of those that were not due."""


@statement("""
WITH live AS (
    SELECT id FROM predictions
     WHERE id = ANY(%(ids)s::uuid[]) AND state IN ('running', 'abandoned') AND lease_token IS NULL
     ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE predictions p SET run_at = least(p.run_at, moment()), woken_at = NULL
  FROM live WHERE p.id = live.id
RETURNING p.id
""")
def make_due_by_id(conn: Connection, ids: Sequence[UUID]) -> list[UUID]:
    """Make those predictions that are running or abandoned, and not leased, due now; return their ids."""


def dead_letter(
    conn: Connection, lease: Lease, decision: DeadLetterDecision, *, step: Step, facts: Mapping[str, object]
) -> Job | None:
    """End a leased prediction as `lost`, with a dead letter; return its job, locked. Raises LeaseLost."""
    row = get(conn, lease.row_id)
    if row is None:
        return None
    job, prediction, actor = jobs.lock(conn, row.job_id), lock(conn, row.id), lease.leased_by
    if prediction.state not in LIVE_STATES:
        return None
    if not leases.is_current(conn, lease):
        raise LeaseLost(f"prediction {prediction.id}: the lease is lost")
    reason = to_storable(decision.reason)
    end(conn, prediction, "lost", ended_by="us", actor=actor, category=decision.category, reason=reason)
    dead_letters.add(conn, "prediction", row.id, decision, step=step, facts=facts, actor=actor)
    return job


@records("prediction", "'lost'", "'running'", "'replayed'")
@statement(f"""
UPDATE predictions
   SET state = 'running', {leases.RESTART}, ended_by = NULL, category = NULL, reason = NULL,
       deadline_at = moment() + %(deadline)s, output_until = NULL, cancel_reason = NULL
 WHERE id = %(prediction_id)s AND state = 'lost' AND external_id IS NOT NULL RETURNING id, job_id
""")
def replay(conn: Connection, prediction_id: UUID, *, deadline: timedelta, actor: str) -> bool:
    """Reset a lost prediction to `running`, due now; return False if it is not lost or was never submitted."""


DETAILS = """
SELECT id, job_id, seq, entry, provider, external_id, model, state, category, reason, raw_status, created_at,
       submitted_at, deadline_at, cancel_reason, output_until, polls, ended_by, run_at, attempt, crashes, leased_by,
       leased_until, ended_at
  FROM predictions
"""


@statement(f"{DETAILS} WHERE job_id = %(job_id)s ORDER BY seq")
def list_by_job(conn: Connection, job_id: UUID) -> list[Row]: ...


def get_wait_end(prediction: Prediction) -> datetime:
    return prediction.output_until or prediction.deadline_at
