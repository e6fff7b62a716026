"""Outcomes of a submission under its lease: running, failed, abandoned, or identified by its webhook key."""

from dataclasses import dataclass
from typing import Final

from db import jobs, leases, predictions, submissions
from db.connection import Connection
from moorage import ids
from moorage.errors import LeaseLost
from moorage.model import Job, Lease, Prediction, PredictionState, Wake
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import fallback

UNCERTAIN: Final = "submit uncertain"  # begins the reason of predictions with submit_uncertain
DEFAULT_OUTPUT_LIFE_SECONDS: Final = 3600.0  # how long to wait for a webhook if the provider declares no output life


@dataclass(frozen=True, slots=True)
class LeasedPrediction:
    """A leased prediction and its job, both locked in the transaction of a connection."""

    conn: Connection
    lease: Lease
    job: Job
    prediction: Prediction

    def end(self, state: PredictionState, decision: DeadLetterDecision, *, ended_by: str = "us") -> None:
        category, reason, actor = decision.category, to_storable(decision.reason), self.lease.leased_by
        predictions.end(
            self.conn, self.prediction, state, ended_by=ended_by, actor=actor, category=category, reason=reason
        )

    def advance_chain(self, decision: DeadLetterDecision) -> list[Wake]:
        return fallback.advance(self.conn, self.job, decision, actor=self.lease.leased_by)

    def fail(self, decision: DeadLetterDecision) -> list[Wake]:
        """End a prediction that was refused or has invalid input, without a dead letter, and advance the chain."""
        self.end("failed", decision)
        return self.advance_chain(decision)


def lock_leased(conn: Connection, lease: Lease) -> LeasedPrediction:
    """Lock the job, then the prediction of a lease. Raises LeaseLost if the row carries another token."""
    row = predictions.get(conn, lease.row_id)
    if row is None:
        raise LeaseLost(f"prediction {lease.row_id} is gone")
    leased = LeasedPrediction(conn, lease, jobs.lock(conn, row.job_id), predictions.lock(conn, row.id))
    if not leases.is_current(conn, lease):
        raise LeaseLost(f"prediction {lease.row_id}: the lease is lost")
    return leased


def record_external_id(leased: LeasedPrediction, provider: Provider, external_id: str) -> list[Wake]:
    """Record that the provider accepted the submission under this id; returns wakes."""
    name, first_poll = to_storable(f"{provider.name} {external_id}", 200), provider.first_poll_seconds()
    if submissions.mark_running(leased.conn, leased.lease, external_id, first_poll_seconds=first_poll, reason=name):
        return []
    reason = f"provider id {name} already belongs to another job"
    return leased.fail(DeadLetterDecision("PROVIDER_FAILED", "DuplicateExternalId", reason, retryable=False))


def abandon_submission(
    leased: LeasedPrediction, provider: Provider | None, cause: str, *, not_created: bool = False
) -> list[Wake]:
    """
    Abandon a submission with an unknown outcome and advance the chain; its webhook still counts.

    Args:
        not_created: the provider's list does not contain it: its entry is submitted once more before the next one.
    """
    conn, job, prediction, actor = leased.conn, leased.job, leased.prediction, leased.lease.leased_by
    life_seconds = (provider and provider.output_lifetime_seconds) or DEFAULT_OUTPUT_LIFE_SECONDS
    reason = to_storable(f"{UNCERTAIN}: {cause}")
    submissions.abandon(conn, leased.lease, output_life_seconds=life_seconds, reason=reason)
    entry = submissions.get_entry(job, prediction)
    may_resubmit = not_created and job.state == "open" and prediction.cancel_reason is None
    if may_resubmit and submissions.was_resubmitted(conn, prediction.id):
        may_resubmit = False
    if may_resubmit and entry is not None and prediction.entry is not None:
        index, prediction_id = prediction.entry, ids.uuid7()
        submissions.plan(conn, prediction_id, job.id, index, entry, reason=reason, actor=actor)
        return [Wake("submit", prediction_id)]
    return leased.advance_chain(DeadLetterDecision("PROVIDER_FAILED", "SubmitUncertain", reason, retryable=True))


def bind_external_id(
    conn: Connection, provider: Provider, key_sha256: str | None, external_id: str, *, actor: str
) -> Prediction | None:
    """Assign the provider's id to the prediction submitted with a key; returns it locked, None if there is none."""
    ref = submissions.find_by_webhook_key(conn, provider.name, key_sha256) if key_sha256 else None
    if ref is None:
        return None
    jobs.lock(conn, ref.job_id)
    prediction = predictions.lock(conn, ref.prediction_id)
    if prediction.external_id is None:
        first_poll = provider.first_poll_seconds()
        reason = to_storable(f"identified as {provider.name} {external_id} by the key in its webhook URL", 200)
        submissions.assign_external_id(
            conn, prediction.id, external_id, first_poll_seconds=first_poll, reason=reason, actor=actor
        )
    return predictions.find_by_external_id(conn, provider.name, external_id)
