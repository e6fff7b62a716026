"""Poll: a prediction whose webhook did not come, or whose time is up."""

from dataclasses import dataclass
from datetime import datetime

from db import dead_letters, jobs, leases, predictions
from db.connection import Connection, current_time
from moorage import logs
from moorage.errors import LeaseLost, MoorageError, ProviderRefused, ProviderUnavailable
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision
from moorage.model import Job, Lease, Prediction, PredictionState, Wake
from moorage.provider_types import PredictionReport
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import settle
from tasks.predictions import reports, submit_outcome
from tasks.step import Deps, LeaseGuard, commit_step

GONE_STATUSES = (404, 410)

log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PollResult:
    """What the provider was asked, with no transaction open, and what it said; `stop`: why it was asked to stop it."""

    provider: Provider | None
    cancel_reason: str | None
    report: PredictionReport | None = None
    error: MoorageError | None = None

    @property
    def output_life_seconds(self) -> float | None:
        """Return how long the provider's URLs live; None: not known."""
        return self.provider.output_lifetime_seconds if self.provider else None


def run(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """Ask the provider what became of one prediction and carry out the answer; returns wakes."""
    prediction = deps.database.run(lambda conn: predictions.get(conn, lease.row_id))
    if prediction is None:
        return []
    provider = deps.providers.get(prediction.provider)
    _stop(provider, prediction)
    said = _ask(provider, prediction)
    failpoint("poll.after_answer")

    def answer(conn: Connection) -> list[Wake]:
        job = jobs.lock(conn, prediction.job_id)
        current = predictions.lock(conn, prediction.id)
        return _answer(conn, deps, lease, job, current, said)

    wakes = commit_step(deps, lease, pulse, answer)
    failpoint("poll.after_commit")
    return wakes or []


def _stop(provider: Provider | None, prediction: Prediction) -> None:
    """Ask the provider to stop what nobody wants any more; the poll that follows tells how it ended."""
    if provider is None or not provider.can_cancel or prediction.external_id is None or not prediction.cancel_reason:
        return
    failpoint("poll.before_cancel")
    try:
        provider.cancel(prediction.external_id, prediction.model)
    except MoorageError as error:  # asked again with the next poll
        log.warning("prediction.cancel_failed", prediction_id=str(prediction.id), error=str(error))
    failpoint("poll.after_cancel")


def _ask(provider: Provider | None, prediction: Prediction) -> PollResult:
    if provider is None or not provider.can_poll or prediction.external_id is None:
        return PollResult(provider, prediction.cancel_reason)
    failpoint("poll.before_request")
    try:
        report = provider.poll(prediction.external_id, prediction.model)
    except MoorageError as error:
        return PollResult(provider, prediction.cancel_reason, error=error)
    return PollResult(provider, prediction.cancel_reason, report)


def _answer(
    conn: Connection, deps: Deps, lease: Lease, job: Job, prediction: Prediction, said: PollResult
) -> list[Wake]:
    moment, error = current_time(conn), said.error
    if prediction.state not in predictions.LIVE_STATES:
        return []  # a webhook was faster, and ended our lease with the prediction
    if not leases.is_current(conn, lease):
        raise LeaseLost(f"prediction {prediction.id}: the lease is lost")
    if said.report is not None:
        heard = reports.ReportSource("poll", moment, lease.leased_by, deps.asset_base, said.output_life_seconds)
        applied = reports.apply_report(conn, job, prediction, said.report, heard)
        if applied.ended:
            return applied.wakes
    if isinstance(error, ProviderRefused) and error.facts.get("status") in GONE_STATUSES:
        why = DeadLetterDecision("PROVIDER_FAILED", "ProviderRefused", to_storable(str(error)), retryable=False)
        return _lose(conn, lease, job, prediction, why)
    if moment >= predictions.get_wait_end(prediction):
        return _time_out(conn, lease, job, prediction, said)
    _wait(conn, lease, prediction, said, moment)
    return []


def _wait(conn: Connection, lease: Lease, prediction: Prediction, said: PollResult, moment: datetime) -> None:
    """Come again on the provider's clock, or when it asks for; at the latest when our time is up."""
    provider, error = said.provider, said.error
    can_ask = provider is not None and provider.can_poll and prediction.external_id is not None
    rest = (predictions.get_wait_end(prediction) - moment).total_seconds()
    seconds = provider.next_poll_seconds(prediction.polls + 1) if provider and can_ask else rest
    if isinstance(error, ProviderUnavailable) and error.retry_after:
        seconds = max(seconds, error.retry_after)
    if prediction.cancel_reason != said.cancel_reason:  # somebody wanted it stopped meanwhile
        seconds = 0.0
    predictions.schedule_next_poll(conn, lease, wait_seconds=seconds, was_polled=can_ask)


def _time_out(conn: Connection, lease: Lease, job: Job, prediction: Prediction, said: PollResult) -> list[Wake]:
    """Our time is up and the provider was asked once more: abandon it; when the output life is over too, it is lost."""
    silence = f"; asking failed: {to_storable(str(said.error), 500)}" if said.error else ""
    if prediction.state == "abandoned" or prediction.cancel_reason is not None:
        reason = f"no answer came before the end of the output life{silence}"
        return _lose(conn, lease, job, prediction, DeadLetterDecision("TIMED_OUT", "NoAnswer", reason, retryable=True))
    reason = f"no answer within the time limit{silence}"
    predictions.abandon(
        conn,
        lease,
        output_life_seconds=said.output_life_seconds or submit_outcome.DEFAULT_OUTPUT_LIFE_SECONDS,
        reason=reason,
    )
    why = DeadLetterDecision("TIMED_OUT", "NoAnswer", reason, retryable=True)
    return settle.advance(conn, job, why, actor=lease.leased_by)


def _lose(conn: Connection, lease: Lease, job: Job, prediction: Prediction, why: DeadLetterDecision) -> list[Wake]:
    """End what no answer came of: lost, with a dead letter, unless nobody wants it or knows that it was ever made."""
    actor, ended_by = lease.leased_by, "deadline" if why.category == "TIMED_OUT" else "poll"
    state, reason = _fate(prediction, why)
    predictions.end(conn, prediction, state, ended_by=ended_by, actor=actor, category=why.category, reason=reason)
    if state == "lost":
        provider = prediction.provider
        dead_letters.add(
            conn, "prediction", prediction.id, why, step="poll", job_id=job.id, provider=provider, actor=actor
        )
    return settle.advance(conn, job, why, actor=actor)


def _fate(prediction: Prediction, why: DeadLetterDecision) -> tuple[PredictionState, str]:
    if prediction.cancel_reason is not None:
        return "cancelled", to_storable(f"{prediction.cancel_reason}; how it ended is not known: {why.reason}")
    if prediction.external_id is None:
        return "failed", f"{submit_outcome.UNCERTAIN}: never heard of"  # no file of it is missed
    return "lost", why.reason
