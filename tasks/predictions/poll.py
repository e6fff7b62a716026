"""The poll step: query the provider about a prediction without a webhook, and give up past its deadline."""

from dataclasses import dataclass, replace
from datetime import datetime

from db import dead_letters, jobs, leases, predictions
from db.connection import Connection, current_time
from moorage import logs
from moorage.errors import LeaseLost, MoorageError, ProviderRefused, ProviderUnavailable
from moorage.failpoints import failpoint
from moorage.model import Lease, Prediction, PredictionState, Wake
from moorage.provider_types import PredictionReport
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable
from providers.base import Provider
from tasks import breakers
from tasks.jobs import turns
from tasks.predictions import inline_files, reports, submit_outcome
from tasks.predictions.submit_outcome import LeasedPrediction
from tasks.step import Deps, LeaseGuard, commit_step, require_unlocked

GONE_STATUSES = (404, 410)

log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PollResult:
    """The provider's answer; `cancel_reason`: why cancellation was requested before the poll."""

    provider: Provider | None
    cancel_reason: str | None
    report: PredictionReport | None = None
    error: MoorageError | None = None

    @property
    def output_life_seconds(self) -> float | None:
        return self.provider.output_lifetime_seconds if self.provider else None


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Poll one prediction and apply the answer; returns wakes. No transaction is open during the request."""
    prediction = deps.database.run(lambda conn: predictions.get(conn, lease.row_id))
    if prediction is None:
        return []
    require_unlocked(deps, prediction.job_id)
    provider = deps.providers.get(prediction.provider)
    _cancel(provider, prediction)
    result = _poll(provider, prediction)
    failpoint("poll.after_answer")
    if result.error is not None:
        breakers.note_api_error(deps, guard, prediction.provider, prediction.job_id, result.error)
    if result.report is not None:
        result = replace(result, report=inline_files.upload_files(deps, result.report))

    def apply_locked(conn: Connection) -> list[Wake]:
        job, current = jobs.lock(conn, prediction.job_id), predictions.lock(conn, prediction.id)
        if result.report is not None:
            breakers.note_success(conn, deps, breakers.name_api(prediction.provider))
        wakes = _apply_result(LeasedPrediction(conn, lease, job, current), deps.asset_base, result)
        if prediction.entry is None:
            return wakes
        return wakes + turns.wake_next(conn, deps.settings, deps.providers)

    return commit_step(deps, lease, guard, apply_locked, point="poll") or []


def _cancel(provider: Provider | None, prediction: Prediction) -> None:
    """Cancel the prediction at the provider if requested; the following poll reports its state."""
    if provider is None or not provider.can_cancel or prediction.external_id is None or not prediction.cancel_reason:
        return
    failpoint("poll.before_cancel")
    try:
        provider.cancel(prediction.external_id, prediction.model)
    except MoorageError as error:  # repeated with the next poll
        log.warning("prediction.cancel_failed", prediction_id=str(prediction.id), error=str(error))
    failpoint("poll.after_cancel")


def _poll(provider: Provider | None, prediction: Prediction) -> PollResult:
    if provider is None or not provider.can_poll or prediction.external_id is None:
        return PollResult(provider, prediction.cancel_reason)
    failpoint("poll.before_request")
    try:
        report = provider.poll(prediction.external_id, prediction.model)
    except MoorageError as error:
        return PollResult(provider, prediction.cancel_reason, error=error)
    return PollResult(provider, prediction.cancel_reason, report)


def _apply_result(leased: LeasedPrediction, asset_base: str, result: PollResult) -> list[Wake]:
    conn, lease, prediction = leased.conn, leased.lease, leased.prediction
    now, error = current_time(conn), result.error
    if prediction.state not in predictions.LIVE_STATES:
        return []  # a webhook ended the prediction and with it this lease
    if not leases.is_current(conn, lease):
        raise LeaseLost(f"prediction {prediction.id}: the lease is lost")
    wait_end, poll_seconds = predictions.get_wait_end(prediction), None
    if result.report is not None:
        life_seconds, may_ask_again = result.output_life_seconds, now < wait_end
        source = reports.ReportSource("poll", now, lease.leased_by, asset_base, life_seconds, may_ask_again)
        outcome = reports.apply_report(conn, leased.job, prediction, result.report, source)
        if outcome.ended:
            return outcome.wakes
        poll_seconds = outcome.poll_seconds
    is_gone = isinstance(error, ProviderRefused) and error.facts.get("status") in GONE_STATUSES
    if is_gone and prediction.polls:  # not at the first poll: what was just created may not be found yet
        decision = DeadLetterDecision("PROVIDER_FAILED", "ProviderRefused", to_storable(str(error)), retryable=False)
        return _end_without_answer(leased, decision)
    if now >= wait_end:
        return _time_out(leased, result)
    _schedule_next_poll(leased, result, now, poll_seconds)
    return []


def _schedule_next_poll(
    leased: LeasedPrediction, result: PollResult, now: datetime, poll_seconds: float | None
) -> None:
    """Use the provider's poll interval and Retry-After; the wait ends at the prediction's deadline at the latest."""
    prediction, error = leased.prediction, result.error
    interval = _get_poll_interval(prediction, result.provider)
    can_poll, remaining = interval is not None, (predictions.get_wait_end(prediction) - now).total_seconds()
    seconds = remaining if interval is None else interval
    if poll_seconds is not None:
        seconds = min(seconds, poll_seconds)
    if isinstance(error, ProviderUnavailable) and error.retry_after:
        seconds = max(seconds, error.retry_after)
    if prediction.cancel_reason != result.cancel_reason:  # cancellation was requested meanwhile
        seconds = 0.0
    reason = to_storable(str(error)) if error else None
    predictions.schedule_next_poll(leased.conn, leased.lease, wait_seconds=seconds, was_polled=can_poll, reason=reason)


def _get_poll_interval(prediction: Prediction, provider: Provider | None) -> float | None:
    """Return the wait before the next poll; None if the prediction cannot be polled."""
    can_poll = provider is not None and provider.can_poll and prediction.external_id is not None
    return provider.next_poll_seconds(prediction.polls + 1) if provider and can_poll else None


def _time_out(leased: LeasedPrediction, result: PollResult) -> list[Wake]:
    """Abandon a prediction past its deadline, which is polled further; past its output life, too, it is lost."""
    prediction = leased.prediction
    suffix = f"; the last poll failed: {to_storable(str(result.error), 500)}" if result.error else ""
    if prediction.state == "abandoned" or prediction.cancel_reason is not None:
        reason = f"no answer before the end of the output life{suffix}"
        return _end_without_answer(leased, DeadLetterDecision("TIMED_OUT", "NoAnswer", reason, retryable=True))
    reason = f"no answer within the time limit{suffix}"
    life_seconds = result.output_life_seconds or submit_outcome.DEFAULT_OUTPUT_LIFE_SECONDS
    interval = _get_poll_interval(prediction, result.provider)  # a late success counts, and its URLs expire
    predictions.abandon(
        leased.conn, leased.lease, output_life_seconds=life_seconds, next_poll_seconds=interval, reason=reason
    )
    return leased.advance_chain(DeadLetterDecision("TIMED_OUT", "NoAnswer", reason, retryable=True))


def _end_without_answer(leased: LeasedPrediction, decision: DeadLetterDecision) -> list[Wake]:
    """End as lost with a dead letter, unless it was cancelled or its provider may never have created it."""
    prediction, reason = leased.prediction, decision.reason
    state: PredictionState = "lost"
    if prediction.cancel_reason is not None:
        state, reason = "cancelled", to_storable(f"{prediction.cancel_reason}; final state unknown: {reason}")
    elif prediction.external_id is None:  # no output is expected of it
        state, reason = "failed", f"{submit_outcome.UNCERTAIN}: no webhook received"
    ended_by = "deadline" if decision.category == "TIMED_OUT" else "us"
    leased.end(state, replace(decision, reason=reason), ended_by=ended_by)
    if state == "lost":
        dead_letters.add(leased.conn, "prediction", prediction.id, decision, step="poll", actor=leased.lease.leased_by)
    return leased.advance_chain(decision)
