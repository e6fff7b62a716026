"""
Submit: a planned prediction, sent to its provider once.

That it is about to be sent is committed before, with the hash of a key that stands in the webhook address: whatever
becomes of the answer, the prediction's webhook finds its row by that key, and so does a look into the provider's list.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from db import jobs, leases, predictions, submissions
from db.connection import Connection, current_time
from moorage import lifecycle, webhook_keys
from moorage.errors import LeaseLost, MoorageError, NotSubmitted, Permanent, ProviderBusy, StepInterrupted
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision, Retry, RetryContext
from moorage.model import FallbackEntry, Job, Lease, Prediction, Wake
from moorage.provider_types import SubmitRequest, SubmitResult
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import settle
from tasks.predictions import references, reports, submit_outcome, submit_recovery
from tasks.step import Deps, LeaseGuard, commit_step

CAPACITY_WAIT_SECONDS: Final = (
    1.0  # how long one waits that finds no room at its provider; by chance half as long again
)

BUSY_WAIT_SECONDS: Final = 5.0  # the pause after a 429 that asks for none


@dataclass(frozen=True, slots=True)
class Submission:
    """What is to be sent to whom, and the single-use key that stands in its webhook address."""

    provider: Provider
    entry: FallbackEntry
    key: str = field(repr=False)

    @property
    def key_sha256(self) -> str:
        """Return what of the key is stored."""
        return webhook_keys.hash_key(self.key)


def run(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """Submit one prediction or look up what became of it; that of a synchronous provider is left to `generate`."""
    prediction = deps.database.run(lambda conn: predictions.get(conn, lease.row_id))
    provider = deps.providers.get(prediction.provider) if prediction else None
    if provider is not None and provider.is_synchronous:  # sweeps must not wait a minute behind it
        deps.database.run(lambda conn: submissions.postpone(conn, lease, wait_seconds=0))
        return [Wake("generate", lease.row_id)]
    return run_generate(deps, lease, pulse)


def run_generate(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """Submit one prediction, or look up what became of a submission that was not recorded; returns wakes."""
    prediction, job = deps.database.run(lambda conn: _read(conn, lease))
    provider = deps.providers.get(prediction.provider)
    if prediction.state == "submitting":
        return submit_recovery.recover_submission(deps, lease, pulse, prediction, provider)
    entry = submissions.get_entry(job, prediction)
    if provider is None or entry is None:
        return _refuse(deps, lease, pulse, Permanent(f"there is no provider {prediction.provider} any more"))
    try:
        given = references.resolve_references(deps, job.owner, dict(entry.input))
    except Permanent as error:
        return _refuse(deps, lease, pulse, error)
    attempt = Submission(provider, replace(entry, input=given), webhook_keys.create_key())
    begun, wakes = commit_step(deps, lease, pulse, lambda conn: _begin(conn, lease, attempt)) or (False, [])
    if not begun:
        return wakes
    failpoint("submit.after_begin")
    answer = _send(deps, pulse, prediction, attempt)
    failpoint("submit.after_answer")
    written = commit_step(deps, lease, pulse, lambda conn: record_submission(conn, deps, lease, provider, answer))
    failpoint("submit.after_commit")
    came_before = (
        submit_outcome.match_deliveries(deps, provider, answer.external_id) if isinstance(answer, SubmitResult) else []
    )
    return [*(written or []), *came_before]


def _read(conn: Connection, lease: Lease) -> tuple[Prediction, Job]:
    prediction = predictions.get(conn, lease.row_id)
    if prediction is None:
        raise LeaseLost(f"prediction {lease.row_id} is gone")
    return prediction, jobs.lock(conn, prediction.job_id)


def _refuse(deps: Deps, lease: Lease, pulse: LeaseGuard, error: Permanent) -> list[Wake]:
    """End a planned prediction that cannot be sent at all, and go on with its chain."""
    why = DeadLetterDecision(error.category, type(error).__name__, str(error), error.retryable)

    def end(conn: Connection) -> list[Wake]:
        job, prediction = submit_outcome.lock_leased(conn, lease)
        return submit_outcome.fail_prediction(conn, lease, job, prediction, why)

    return commit_step(deps, lease, pulse, end) or []


def _begin(conn: Connection, lease: Lease, attempt: Submission) -> tuple[bool, list[Wake]]:
    """Say that it is about to be sent, if it still is to be, and there is room; run twice it does it once."""
    job, prediction = submit_outcome.lock_leased(conn, lease)
    if prediction.key_sha256 == attempt.key_sha256:
        return True, []  # an uncertain COMMIT had happened
    if job.state != "open":
        reason = f"not submitted: the job was {job.state} already"
        predictions.end(conn, prediction, "cancelled", ended_by="us", actor=lease.leased_by, reason=reason)
        return False, settle.advance(
            conn, job, DeadLetterDecision("TIMED_OUT", "Unneeded", reason, False), actor=lease.leased_by
        )
    if current_time(conn) >= job.deadline_at:
        why = DeadLetterDecision(
            "TIMED_OUT", "NoTime", "the job's deadline passed before it could be submitted", retryable=True
        )
        return False, submit_outcome.fail_prediction(conn, lease, job, prediction, why)
    if not submissions.has_capacity(conn, prediction.provider, attempt.provider.max_in_flight):
        submissions.postpone(conn, lease, wait_seconds=CAPACITY_WAIT_SECONDS * random.uniform(1.0, 1.5))  # noqa: S311 (spreads them)
        return False, []
    submissions.mark_submitting(conn, lease, key_sha256=attempt.key_sha256, deadline_seconds=attempt.entry.seconds)
    return True, []


def _send(deps: Deps, pulse: LeaseGuard, prediction: Prediction, attempt: Submission) -> SubmitResult | MoorageError:
    """Send it; whatever follows is returned, for what must not be forgotten is that it was about to be sent."""
    hook = webhook_keys.build_webhook_url(deps.settings.public_url, prediction.provider, attempt.key)
    entry = attempt.entry
    order = SubmitRequest(prediction.id, entry.model, entry.input, hook, entry.seconds)
    try:
        pulse.before_write()
    except StepInterrupted as error:
        return error
    try:
        return attempt.provider.submit(order)
    except LeaseLost:
        raise
    except MoorageError as error:
        return error


def record_submission(
    conn: Connection, deps: Deps, lease: Lease, provider: Provider, answer: SubmitResult | MoorageError
) -> list[Wake]:
    """
    Write down what a submission came to, under the lease of the one who sent it; returns wakes.

    Raises:
        LeaseLost: its webhook was faster, or another worker looks it up.
    """
    job, prediction = submit_outcome.lock_leased(conn, lease)
    if isinstance(answer, SubmitResult):
        return _taken(conn, deps, lease, job, prediction, provider, answer)
    reason = to_storable(str(answer))
    if isinstance(answer, StepInterrupted):
        submissions.return_to_planned(conn, lease, wait_seconds=0, reason=f"not sent: {reason}", counts_as_error=False)
    elif isinstance(answer, NotSubmitted):
        return _again(conn, deps, lease, job, prediction, answer)
    elif isinstance(answer, Permanent):
        why = DeadLetterDecision(answer.category, type(answer).__name__, reason, answer.retryable)
        return submit_outcome.fail_prediction(conn, lease, job, prediction, why)
    elif submit_recovery.is_recoverable(provider):
        reason = f"{submit_outcome.UNCERTAIN}: {reason}"
        leases.reschedule(
            conn, lease, wait_seconds=submit_recovery.LOOKUP_DELAYS_SECONDS[0], reason=reason, counts_as_error=False
        )
    else:
        return submit_outcome.abandon_submission(conn, lease, job, prediction, provider, reason, not_created=False)
    return []


def _taken(
    conn: Connection,
    deps: Deps,
    lease: Lease,
    job: Job,
    prediction: Prediction,
    provider: Provider,
    answer: SubmitResult,
) -> list[Wake]:
    """Record its id; where the files have come with it, they take the path of every other report."""
    wakes = submit_outcome.record_external_id(conn, lease, job, prediction, provider, answer.external_id)
    current = predictions.lock(conn, prediction.id)
    if answer.report is None or current.external_id != answer.external_id:
        return wakes
    heard = reports.ReportSource(
        "poll", current_time(conn), lease.leased_by, deps.asset_base, provider.output_lifetime_seconds
    )
    return reports.apply_report(conn, job, current, answer.report, heard).wakes


def _again(
    conn: Connection, deps: Deps, lease: Lease, job: Job, prediction: Prediction, error: NotSubmitted
) -> list[Wake]:
    """Plan it again with a pause, or fail it: after too many errors, or where its time would be over by then."""
    moment, jitter = current_time(conn), random.random()  # noqa: S311 (spreads retries; nothing secret)
    if isinstance(error, ProviderBusy):
        pause = (error.retry_after or BUSY_WAIT_SECONDS) * (1.0 + 0.2 * jitter)
        verdict: Retry | DeadLetterDecision = Retry(moment + timedelta(seconds=pause), str(error), is_counted=False)
    else:
        verdict = lifecycle.decide_after_failure(
            error, RetryContext(lease.errors), now=moment, jitter=jitter, policy=deps.policy
        )
    if isinstance(verdict, Retry) and verdict.run_at >= _last_try(conn, job, prediction):
        reason = f"{verdict.reason}; its time would be over before the next try"
        verdict = DeadLetterDecision(error.category, type(error).__name__, reason, error.retryable)
    if isinstance(verdict, DeadLetterDecision):
        return submit_outcome.fail_prediction(conn, lease, job, prediction, verdict)
    wait = (verdict.run_at - moment).total_seconds()
    submissions.return_to_planned(
        conn, lease, wait_seconds=wait, reason=to_storable(verdict.reason), counts_as_error=verdict.is_counted
    )
    return []


def _last_try(conn: Connection, job: Job, prediction: Prediction) -> datetime:
    """Return until when it may be sent: where another entry follows it has its entry's time, else the job's."""
    entry = submissions.get_entry(job, prediction)
    if entry is None or settle.find_next_entry(conn, job) is None:
        return job.deadline_at
    return min(job.deadline_at, prediction.created_at + timedelta(seconds=entry.seconds))
