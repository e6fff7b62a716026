"""What a provider's answer to a submission does: it runs, it is planned again, it has failed, or nobody knows."""

import random
from datetime import datetime, timedelta
from typing import Final

from db import leases, predictions, submits
from db.connect import Connection, now
from moorage import lifecycle
from moorage.errors import HandBack, MoorageError, NotSubmitted, Permanent, ProviderBusy
from moorage.exchange import Submitted
from moorage.lifecycle import GiveUp, Retry, Work
from moorage.model import Job, Lease, Prediction, Wake
from moorage.text import storable
from providers.base import Provider
from tasks import apply, chain, lookup, tries
from tasks.deps import Deps

BUSY_SECONDS: Final = 5.0  # the pause after a 429 that asks for none


def record(
    conn: Connection, deps: Deps, lease: Lease, provider: Provider, answer: Submitted | MoorageError
) -> list[Wake]:
    """
    Write down what a submission came to, under the lease of the one who sent it; returns wakes.

    Raises:
        LeaseLost: its webhook was faster, or another worker looks it up.
    """
    job, prediction = tries.locked(conn, lease)
    if isinstance(answer, Submitted):
        return _taken(conn, deps, lease, job, prediction, provider, answer)
    reason = storable(str(answer))
    if isinstance(answer, HandBack):
        submits.back(conn, lease, wait_seconds=0, reason=f"not sent: {reason}", counted=False)
    elif isinstance(answer, NotSubmitted):
        return _again(conn, deps, lease, job, prediction, answer)
    elif isinstance(answer, Permanent):
        why = GiveUp(answer.category, type(answer).__name__, reason, answer.retryable)
        return tries.fail(conn, lease, job, prediction, why)
    elif lookup.may_be_found(provider):
        reason = f"{tries.UNCERTAIN}: {reason}"
        leases.hand_back(conn, lease, wait_seconds=lookup.LOOKS[0], reason=reason, counted=False)
    else:
        return tries.abandon(conn, lease, job, prediction, provider, reason, nothing_made=False)
    return []


def _taken(
    conn: Connection, deps: Deps, lease: Lease, job: Job, prediction: Prediction, provider: Provider, answer: Submitted
) -> list[Wake]:
    """Record its id; where the files have come with it, they take the path of every other report."""
    wakes = tries.take(conn, lease, job, prediction, provider, answer.external_id)
    current = predictions.lock(conn, prediction.id)
    if answer.report is None or current.external_id != answer.external_id:
        return wakes
    heard = apply.Hearing("poll", now(conn), lease.leased_by, deps.asset_base, provider.output_life_seconds)
    return apply.apply(conn, job, current, answer.report, heard).wakes


def _again(
    conn: Connection, deps: Deps, lease: Lease, job: Job, prediction: Prediction, error: NotSubmitted
) -> list[Wake]:
    """Plan it again with a pause, or fail it: after too many errors, or where its time would be over by then."""
    moment, jitter = now(conn), random.random()  # noqa: S311 (spreads retries; nothing secret)
    if isinstance(error, ProviderBusy):
        pause = (error.retry_after or BUSY_SECONDS) * (1.0 + 0.2 * jitter)
        verdict: Retry | GiveUp = Retry(moment + timedelta(seconds=pause), str(error), counted=False)
    else:
        verdict = lifecycle.after_failure(error, Work(lease.errors), now=moment, jitter=jitter, policy=deps.policy)
    if isinstance(verdict, Retry) and verdict.at >= _last_try(conn, job, prediction):
        reason = f"{verdict.reason}; its time would be over before the next try"
        verdict = GiveUp(error.category, type(error).__name__, reason, error.retryable)
    if isinstance(verdict, GiveUp):
        return tries.fail(conn, lease, job, prediction, verdict)
    wait = (verdict.at - moment).total_seconds()
    submits.back(conn, lease, wait_seconds=wait, reason=storable(verdict.reason), counted=verdict.counted)
    return []


def _last_try(conn: Connection, job: Job, prediction: Prediction) -> datetime:
    """Return until when it may be sent: where another entry follows it has its entry's time, else the job's."""
    entry = submits.entry_of(job, prediction)
    if entry is None or chain.next_entry(conn, job) is None:
        return job.deadline_at
    return min(job.deadline_at, prediction.created_at + timedelta(seconds=entry.seconds))
