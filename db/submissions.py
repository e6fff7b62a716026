"""Submissions: predictions that moorage submits to a provider, from `planned` to `running`."""

from typing import Final, NamedTuple
from uuid import UUID

from db.connection import Connection
from db.events import records
from db.leases import CLEAR_LEASE
from db.predictions import build_abandon
from db.statements import statement
from moorage.model import FallbackEntry, Job, Lease, Prediction
from moorage.transitions import EventKind


@records("prediction", "NULL", "'planned'", "%(reason)s")
@statement("""
INSERT INTO predictions (id, job_id, seq, entry, provider, model, owner, state, deadline_at, run_at,
                         woken_at)
SELECT %(prediction_id)s, j.id, (SELECT coalesce(max(seq) + 1, 0) FROM predictions WHERE job_id = j.id), %(index)s,
       %(provider)s, %(model)s, j.owner, 'planned', j.deadline_at, moment(),
       CASE WHEN %(is_woken)s THEN moment() END
  FROM jobs j WHERE j.id = %(job_id)s RETURNING id, job_id
""")
def plan(
    conn: Connection, prediction_id: UUID, job_id: UUID, index: int, entry: FallbackEntry, *, reason: str | None,
    actor: str, is_woken: bool = True,
) -> UUID:  # fmt: skip
    """Insert the next prediction of a locked or newly inserted job, due now; return its id, to be woken by default."""


# An entry whose prediction moorage cancelled is used again: it has not been tried.
@statement("""
SELECT coalesce((SELECT entry + CASE WHEN state = 'cancelled' AND (submitted_at IS NULL OR cancel_reason IS NOT NULL)
                                     THEN 0 ELSE 1 END
                   FROM predictions WHERE job_id = %(job_id)s AND entry IS NOT NULL ORDER BY seq DESC LIMIT 1), 0)
""")
def get_next_entry_index(conn: Connection, job_id: UUID) -> int:
    """Return the index of the next entry of a job's fallback chain: its length after the last one."""


def parse_fallback_chain(job: Job) -> list[FallbackEntry]:
    """Return a job's fallback chain; empty if the application submitted the prediction itself."""
    return [FallbackEntry(**entry) for entry in job.fallback_chain or ()]


def get_entry(job: Job, prediction: Prediction) -> FallbackEntry | None:
    """Return a prediction's entry of the fallback chain; None if moorage did not submit it."""
    chain = parse_fallback_chain(job)
    return chain[prediction.entry] if prediction.entry is not None and prediction.entry < len(chain) else None


@records("prediction", "'planned'", "'submitting'")
@statement("""
UPDATE predictions
   SET state = 'submitting', key_sha256 = %(key_sha256)s, submitted_at = moment(), polls = 0, reason = NULL,
       category = NULL, cancel_reason = NULL,
       deadline_at = least(deadline_at, moment() + make_interval(secs => %(deadline_seconds)s))
 WHERE id = %(id)s AND lease_token = %(token)s AND state = 'planned' RETURNING id, job_id
""")
def mark_submitting(conn: Connection, lease: Lease, *, key_sha256: str, deadline_seconds: float) -> None:
    """Record that a prediction is about to be submitted; its deadline starts, the lease remains. Raises LeaseLost."""


_SET_WAIT: Final = "woken_at = NULL, run_at = moment() + make_interval(secs => greatest(%(wait_seconds)s, 0))"


@statement(f"""
UPDATE predictions SET {CLEAR_LEASE}, {_SET_WAIT}, attempt = attempt - 1,
       polls = polls + CASE WHEN %(has_searched)s THEN 1 ELSE 0 END
 WHERE id = %(id)s AND lease_token = %(token)s RETURNING id
""")
def postpone(conn: Connection, lease: Lease, *, wait_seconds: float, has_searched: bool = False) -> None:
    """Make a prediction due after a wait that is not an error, such as that for the next search. Raises LeaseLost."""


@records("prediction", "'submitting'", "'planned'", "%(reason)s", kind="%(kind)s")
@statement(f"""
UPDATE predictions SET state = 'planned', {CLEAR_LEASE}, {_SET_WAIT}, key_sha256 = NULL, submitted_at = NULL,
       reason = %(reason)s, attempt = attempt - CASE WHEN %(counts_as_error)s THEN 0 ELSE 1 END,
       deadline_at = (SELECT j.deadline_at FROM jobs j WHERE j.id = predictions.job_id)
 WHERE id = %(id)s AND lease_token = %(token)s AND state = 'submitting' RETURNING id, job_id
""")
def return_to_planned(
    conn: Connection, lease: Lease, *, wait_seconds: float, reason: str, counts_as_error: bool, kind: EventKind
) -> None:
    """Reset a prediction that the provider certainly did not accept to `planned`. Raises LeaseLost."""


@records("prediction", "'submitting'", "'running'", "%(reason)s")
@statement(f"""
UPDATE predictions
   SET state = 'running', external_id = %(external_id)s, {CLEAR_LEASE}, woken_at = NULL, attempt = crashes - 1,
       polls = 0, reason = NULL,
       run_at = CASE WHEN cancel_reason IS NOT NULL THEN moment()
                     ELSE least(moment() + make_interval(secs => %(first_poll_seconds)s),
                                greatest(deadline_at, moment())) END  -- beyond it only if the clock is ahead
 WHERE id = %(id)s AND lease_token = %(token)s AND state = 'submitting'
   AND NOT EXISTS (SELECT FROM predictions k
                    WHERE k.provider = predictions.provider AND k.external_id = %(external_id)s) RETURNING id, job_id
""")
def mark_running(conn: Connection, lease: Lease, external_id: str, *, first_poll_seconds: float, reason: str) -> bool:
    """Record that the provider accepted a submission; return False if the lease is lost or another row has the id."""


@statement(build_abandon("submitting", "category = 'PROVIDER_FAILED', submit_uncertain = true"))
def abandon(
    conn: Connection, lease: Lease, *, output_life_seconds: float, reason: str, next_poll_seconds: float | None = None
) -> None:
    """Stop waiting for an uncertain submission; its webhook counts during `output_life_seconds`. Raises LeaseLost."""


@statement("UPDATE predictions SET submit_uncertain = true WHERE id = %(id)s AND lease_token = %(token)s RETURNING id")
def mark_uncertain(conn: Connection, lease: Lease) -> None:
    """Record that it is unknown whether the provider accepted a submission. Raises LeaseLost."""


@statement("""
SELECT p.id FROM predictions p
  JOIN predictions b ON b.job_id = p.job_id AND b.entry = p.entry AND b.seq = p.seq - 1
 WHERE p.id = %(prediction_id)s AND b.submit_uncertain AND b.external_id IS NULL AND b.state IN ('abandoned', 'failed')
""")
def was_resubmitted(conn: Connection, prediction_id: UUID) -> bool:
    """Return True if this prediction repeats its predecessor's entry, whose submission was never resolved."""


class PredictionRef(NamedTuple):
    prediction_id: UUID
    job_id: UUID


@statement("""
SELECT id AS prediction_id, job_id FROM predictions WHERE key_sha256 = %(key_sha256)s AND provider = %(provider)s
""")
def find_by_webhook_key(conn: Connection, provider: str, key_sha256: str) -> PredictionRef | None: ...


# Also clears the lease of a concurrent submit step, whose own commit then raises LeaseLost.
@statement("""
WITH old AS (
    SELECT id, state FROM predictions
     WHERE id = %(prediction_id)s AND external_id IS NULL AND state IN ('submitting', 'abandoned', 'lost') FOR UPDATE
), moved AS (
    UPDATE predictions p SET state = CASE old.state WHEN 'submitting' THEN 'running' ELSE old.state END,
           external_id = %(external_id)s, woken_at = NULL, polls = 0,
           run_at = CASE WHEN old.state = 'lost' THEN NULL
                         WHEN p.cancel_reason IS NOT NULL THEN moment()
                         ELSE least(moment() + make_interval(secs => %(first_poll_seconds)s),
                                    greatest(coalesce(p.output_until, p.deadline_at), moment())) END,
           crashes = p.crashes - CASE WHEN p.lease_token IS NULL THEN 0 ELSE 1 END,
           attempt = p.crashes - CASE WHEN p.lease_token IS NULL THEN 0 ELSE 1 END,
           lease_token = NULL, leased_by = NULL, leased_until = NULL
      FROM old WHERE p.id = old.id
    RETURNING p.id, p.job_id, old.state AS from_state, p.state AS to_state
), event AS (
    INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
    SELECT 'prediction', id, job_id, from_state, to_state, %(reason)s, %(actor)s FROM moved WHERE from_state <> 'lost'
)
SELECT id FROM moved
""")
def assign_external_id(
    conn: Connection, prediction_id: UUID, external_id: str, *, first_poll_seconds: float, reason: str, actor: str
) -> bool:
    """Set the external id of a locked prediction from its webhook; return False if it has one or does not need one."""
