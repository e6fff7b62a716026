"""
The submit step: send a planned prediction to its provider once.

The state `submitting` is committed before the request, with the hash of a single-use key in the webhook URL. If the
response is lost, the webhook or the provider's list identifies the prediction by that key.
"""

import contextlib
import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from db import jobs, leases, predictions, submission_turns, submissions
from db.connection import Connection, current_time
from moorage import errors, retry_policy, webhook_url_keys
from moorage.failpoints import failpoint
from moorage.model import FallbackEntry, Job, Lease, Prediction, Step, Wake
from moorage.provider_types import SubmitRequest, SubmitResult
from moorage.retry_policy import DeadLetterDecision, Retry, RetryContext, RetryPolicy
from moorage.text import to_storable
from providers.base import Provider
from tasks import breakers
from tasks.jobs import create, fallback, turns
from tasks.predictions import references, reports, submit_outcome, submit_recovery
from tasks.predictions.submit_outcome import LeasedPrediction, lock_leased
from tasks.step import LOCK_CHECK_MS, Deps, LeaseGuard, commit_step

BUSY_WAIT_SECONDS: Final = 5.0  # after a 429 without Retry-After


@dataclass(frozen=True, slots=True)
class Submission:
    provider: Provider
    entry: FallbackEntry
    key: str = field(repr=False)

    @property
    def key_sha256(self) -> str:
        return webhook_url_keys.hash_key(self.key)


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Submit one prediction, or pass it to `generate` if its provider is synchronous."""
    prediction = deps.database.run(lambda conn: predictions.get(conn, lease.row_id))
    provider = deps.providers.get(prediction.provider) if prediction else None
    if provider is not None and provider.is_synchronous:  # takes a minute: sweeps must not wait behind it
        deps.database.run(lambda conn: submissions.postpone(conn, lease, wait_seconds=0))
        return [Wake("generate", lease.row_id)]
    return run_generate(deps, lease, guard)


def claim(deps: Deps, step: Step, row_id: UUID, **who: Any) -> tuple[Lease | None, bool]:
    """Claim the prediction whose turn it is; see submission_turns.claim."""
    passed_on = [name for name, provider in deps.providers.items() if turns.get_step(provider) != step]
    passed_on = passed_on if step == "submit" else []
    return submission_turns.claim(deps.database, row_id, deps.settings, passed_on=passed_on, **who)


def run_generate(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Submit one prediction, or look up a submission; returns wakes, also for the next ones if it did not start."""
    wakes = _submit(deps, lease, guard)
    with contextlib.suppress(errors.DatabaseUnavailable, errors.DatabaseLocked):  # dispatch wakes them, too
        wakes = wakes + deps.database.run(lambda conn: turns.wake_next(conn, deps.settings, deps.providers))
    return wakes


def _submit(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    prediction, job = deps.database.run(lambda conn: _load(conn, lease), lock_ms=LOCK_CHECK_MS)
    provider = deps.providers.get(prediction.provider)
    if prediction.state == "submitting":
        return submit_recovery.recover_submission(deps, lease, guard, prediction, provider)
    entry = submissions.get_entry(job, prediction)
    if provider is None or entry is None:
        return _fail(deps, lease, guard, errors.Permanent(f"provider {prediction.provider} is not configured"))
    try:
        model_input = references.resolve_references(deps, job.owner, dict(entry.input), provider.file_fields)
    except errors.Permanent as error:
        return _fail(deps, lease, guard, error)
    submission = Submission(provider, replace(entry, input=model_input), webhook_url_keys.create_url_key())
    guard.check()
    begun = commit_step(deps, lease, guard, partial(_begin_if_allowed, lease=lease, submission=submission))
    has_begun, wakes = begun or (False, [])
    if not has_begun:
        return wakes
    failpoint("submit.after_begin")
    result = _send(deps, guard, prediction, submission)
    failpoint("submit.after_answer")
    record = partial(record_submission, deps=deps, lease=lease, provider=provider, result=result)
    is_listed = provider.can_list and provider.can_call(deps.settings.public_url)  # the list has the result, too
    wakes = commit_step(deps, lease, guard, record, point="submit", is_repeatable=is_listed) or []
    if isinstance(result, errors.MoorageError):
        breakers.note_api_error(deps, guard, provider.name, job.id, result)
    if isinstance(result, SubmitResult):
        wakes = wakes + create.wake_unmatched(deps.database, provider.name, result.external_id)
    return wakes


def _load(conn: Connection, lease: Lease) -> tuple[Prediction, Job]:
    prediction = predictions.get(conn, lease.row_id)
    if prediction is None:
        raise errors.LeaseLost(f"prediction {lease.row_id} is gone")
    return prediction, jobs.lock(conn, prediction.job_id)


def _fail(deps: Deps, lease: Lease, guard: LeaseGuard, error: errors.Permanent) -> list[Wake]:
    decision = DeadLetterDecision(error.category, type(error).__name__, str(error), error.retryable)
    return commit_step(deps, lease, guard, lambda conn: lock_leased(conn, lease).fail(decision)) or []


def _begin_if_allowed(conn: Connection, lease: Lease, submission: Submission) -> tuple[bool, list[Wake]]:
    """Mark the prediction as submitting if it is still needed; its claim has taken a place. Idempotent."""
    leased = lock_leased(conn, lease)
    job, prediction = leased.job, leased.prediction
    if prediction.key_sha256 == submission.key_sha256:
        return True, []  # an uncertain COMMIT had succeeded
    if job.state != "open":
        reason = f"not submitted: the job was {job.state} already"
        predictions.end(conn, prediction, "cancelled", ended_by="us", actor=lease.leased_by, reason=reason)
        return False, leased.advance_chain(DeadLetterDecision("TIMED_OUT", "Unneeded", reason, retryable=False))
    if current_time(conn) >= job.deadline_at:
        reason = "the job's deadline passed before it could be submitted"
        return False, leased.fail(DeadLetterDecision("TIMED_OUT", "NoTime", reason, retryable=True))
    seconds = submission.entry.seconds
    submissions.mark_submitting(conn, lease, key_sha256=submission.key_sha256, deadline_seconds=seconds)
    return True, []


def _send(
    deps: Deps, guard: LeaseGuard, prediction: Prediction, submission: Submission
) -> SubmitResult | errors.MoorageError:
    """Send the request. Errors are returned, because the committed submission needs a recorded outcome."""
    public_url, webhook = deps.settings.public_url, None
    if submission.provider.can_call(public_url):
        webhook = webhook_url_keys.build_webhook_url(public_url, prediction.provider, submission.key)
    entry = submission.entry
    request = SubmitRequest(prediction.id, entry.model, entry.input, webhook, entry.seconds)
    try:
        _ensure_held(guard)
        return submission.provider.submit(request)
    except errors.LeaseLost:
        raise
    except errors.MoorageError as error:
        return error


def _ensure_held(guard: LeaseGuard) -> None:
    """Raise NotSubmitted if the lease cannot be renewed, as without memory for a thread: nothing was sent."""
    try:
        guard.ensure_held()
    except (errors.LeaseLost, errors.StepInterrupted):
        raise
    except errors.MoorageError as error:
        raise errors.NotSubmitted(f"not sent: {error}") from error


def record_submission(
    conn: Connection, deps: Deps, lease: Lease, provider: Provider, result: SubmitResult | errors.MoorageError
) -> list[Wake]:
    """Record the result of a submission; returns wakes. Raises LeaseLost after its webhook or another worker."""
    leased = lock_leased(conn, lease)
    if isinstance(result, SubmitResult):
        breakers.note_success(conn, deps, breakers.name_api(provider.name))
        return _record_result(leased, deps.asset_base, provider, result)
    reason = to_storable(str(result))
    if isinstance(result, errors.StepInterrupted):
        reason, kind = f"not sent: {reason}", result.event_kind
        submissions.return_to_planned(conn, lease, wait_seconds=0, reason=reason, counts_as_error=False, kind=kind)
    elif isinstance(result, errors.NotSubmitted):
        return _retry_or_fail(leased, deps.policy, result)
    elif isinstance(result, errors.Permanent):
        return leased.fail(DeadLetterDecision(result.category, type(result).__name__, reason, result.retryable))
    elif submit_recovery.is_recoverable(provider):
        reason, wait = f"{submit_outcome.UNCERTAIN}: {reason}", submit_recovery.LOOKUP_DELAYS_SECONDS[0]
        submissions.mark_uncertain(conn, lease)
        leases.reschedule(conn, lease, wait_seconds=wait, reason=reason, counts_as_error=False)
    else:
        return submit_outcome.abandon_submission(leased, provider, reason)
    return []


def _record_result(leased: LeasedPrediction, asset_base: str, provider: Provider, result: SubmitResult) -> list[Wake]:
    """Record the external id. A report in the response is applied like any other report."""
    conn, actor, life_seconds = leased.conn, leased.lease.leased_by, provider.output_lifetime_seconds
    wakes = submit_outcome.record_external_id(leased, provider, result.external_id)
    current = predictions.lock(conn, leased.prediction.id)
    if result.report is None or current.external_id != result.external_id:
        return wakes
    source = reports.ReportSource("poll", current_time(conn), actor, asset_base, life_seconds, can_poll=False)
    return reports.apply_report(conn, leased.job, current, result.report, source).wakes


def _retry_or_fail(leased: LeasedPrediction, policy: RetryPolicy, error: errors.NotSubmitted) -> list[Wake]:
    """Plan the submission again, or fail it after too many errors or if the retry would exceed the deadline."""
    now, jitter = current_time(leased.conn), random.random()  # noqa: S311 (spreads retries; nothing secret)
    if isinstance(error, errors.RateLimited):
        pause = (error.retry_after or BUSY_WAIT_SECONDS) * (1.0 + 0.2 * jitter)
        decision: Retry | DeadLetterDecision = Retry(now + timedelta(seconds=pause), str(error), is_counted=False)
    else:
        ctx = RetryContext(leased.lease.errors)
        decision = retry_policy.decide_after_failure(error, ctx, now=now, jitter=jitter, policy=policy)
    if isinstance(decision, Retry) and decision.run_at >= _submit_deadline(leased):
        reason = f"{decision.reason}; the next retry would exceed the deadline"
        decision = DeadLetterDecision(error.category, type(error).__name__, reason, error.retryable)
    if isinstance(decision, DeadLetterDecision):
        return leased.fail(decision)
    wait, reason, counted = (decision.run_at - now).total_seconds(), to_storable(decision.reason), decision.is_counted
    submissions.return_to_planned(
        leased.conn, leased.lease, wait_seconds=wait, reason=reason, counts_as_error=counted, kind=decision.kind
    )
    return []


def _submit_deadline(leased: LeasedPrediction) -> datetime:
    """Return the latest time to submit: the entry's deadline if another entry follows, else the job's."""
    job, prediction = leased.job, leased.prediction
    entry = submissions.get_entry(job, prediction)
    if entry is None or fallback.find_next_entry(leased.conn, job) is None:
        return job.deadline_at
    return min(job.deadline_at, prediction.created_at + timedelta(seconds=entry.seconds))
