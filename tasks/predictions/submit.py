"""
Submit: a planned prediction, sent to its provider once.

That it is about to be sent is committed before, with the hash of a key that stands in the webhook address: whatever
becomes of the answer, the prediction's webhook finds its row by that key, and so does a look into the provider's list.
"""

import hashlib
import random
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlencode

from db import jobs, leases, predictions, submissions
from db.connection import Connection, now
from moorage import lifecycle
from moorage.errors import HandBack, LeaseLost, MoorageError, NotSubmitted, Permanent, ProviderBusy
from moorage.failpoints import failpoint
from moorage.lifecycle import GiveUp, Retry, Work
from moorage.model import Entry, Job, Lease, Prediction, Wake
from moorage.provider_types import Order, Submitted
from moorage.text import storable
from providers.base import Provider
from tasks.jobs import settle
from tasks.predictions import references, reports, submit_outcome, submit_recovery
from tasks.step import Deps, Pulse, write_back

ROOM_SECONDS: Final = 1.0  # how long one waits that finds no room at its provider; by chance half as long again

BUSY_SECONDS: Final = 5.0  # the pause after a 429 that asks for none


@dataclass(frozen=True, slots=True)
class Try:
    """What is to be sent to whom, and the single-use key that stands in its webhook address."""

    provider: Provider
    entry: Entry
    key: str = field(repr=False)

    @property
    def key_sha256(self) -> str:
        """Return what of the key is stored."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def run(deps: Deps, lease: Lease, pulse: Pulse) -> list[Wake]:
    """Submit one prediction or look up what became of it; that of a synchronous provider is left to `generate`."""
    prediction = deps.database.run(lambda conn: predictions.get(conn, lease.row_id))
    provider = deps.providers.get(prediction.provider) if prediction else None
    if provider is not None and provider.synchronous:  # sweeps must not wait a minute behind it
        deps.database.run(lambda conn: submissions.wait(conn, lease, wait_seconds=0))
        return [Wake("generate", lease.row_id)]
    return generate(deps, lease, pulse)


def generate(deps: Deps, lease: Lease, pulse: Pulse) -> list[Wake]:
    """Submit one prediction, or look up what became of a submission that was not recorded; returns wakes."""
    prediction, job = deps.database.run(lambda conn: _read(conn, lease))
    provider = deps.providers.get(prediction.provider)
    if prediction.state == "submitting":
        return submit_recovery.run(deps, lease, pulse, prediction, provider)
    entry = submissions.entry_of(job, prediction)
    if provider is None or entry is None:
        return _refuse(deps, lease, pulse, Permanent(f"there is no provider {prediction.provider} any more"))
    try:
        given = references.resolve(deps, job.owner, dict(entry.input))
    except Permanent as error:
        return _refuse(deps, lease, pulse, error)
    attempt = Try(provider, replace(entry, input=given), secrets.token_urlsafe(32))
    begun, wakes = write_back(deps, lease, pulse, lambda conn: _begin(conn, lease, attempt)) or (False, [])
    if not begun:
        return wakes
    failpoint("submit.after_begin")
    answer = _send(deps, pulse, prediction, attempt)
    failpoint("submit.after_answer")
    written = write_back(deps, lease, pulse, lambda conn: record(conn, deps, lease, provider, answer))
    failpoint("submit.after_commit")
    came_before = submit_outcome.match(deps, provider, answer.external_id) if isinstance(answer, Submitted) else []
    return [*(written or []), *came_before]


def _read(conn: Connection, lease: Lease) -> tuple[Prediction, Job]:
    prediction = predictions.get(conn, lease.row_id)
    if prediction is None:
        raise LeaseLost(f"prediction {lease.row_id} is gone")
    return prediction, jobs.lock(conn, prediction.job_id)


def _refuse(deps: Deps, lease: Lease, pulse: Pulse, error: Permanent) -> list[Wake]:
    """End a planned prediction that cannot be sent at all, and go on with its chain."""
    why = GiveUp(error.category, type(error).__name__, str(error), error.retryable)

    def end(conn: Connection) -> list[Wake]:
        job, prediction = submit_outcome.locked(conn, lease)
        return submit_outcome.fail(conn, lease, job, prediction, why)

    return write_back(deps, lease, pulse, end) or []


def _begin(conn: Connection, lease: Lease, attempt: Try) -> tuple[bool, list[Wake]]:
    """Say that it is about to be sent, if it still is to be, and there is room; run twice it does it once."""
    job, prediction = submit_outcome.locked(conn, lease)
    if prediction.key_sha256 == attempt.key_sha256:
        return True, []  # an uncertain COMMIT had happened
    if job.state != "open":
        reason = f"not submitted: the job was {job.state} already"
        predictions.end(conn, prediction, "cancelled", ended_by="us", actor=lease.leased_by, reason=reason)
        return False, settle.go_on(conn, job, GiveUp("TIMED_OUT", "Unneeded", reason, False), actor=lease.leased_by)
    if now(conn) >= job.deadline_at:
        why = GiveUp("TIMED_OUT", "NoTime", "the job's deadline passed before it could be submitted", retryable=True)
        return False, submit_outcome.fail(conn, lease, job, prediction, why)
    if not submissions.has_room(conn, prediction.provider, attempt.provider.max_in_flight):
        submissions.wait(conn, lease, wait_seconds=ROOM_SECONDS * random.uniform(1.0, 1.5))  # noqa: S311 (spreads them)
        return False, []
    submissions.begin(conn, lease, key_sha256=attempt.key_sha256, seconds=attempt.entry.seconds)
    return True, []


def _send(deps: Deps, pulse: Pulse, prediction: Prediction, attempt: Try) -> Submitted | MoorageError:
    """Send it; whatever follows is returned, for what must not be forgotten is that it was about to be sent."""
    hook = f"{deps.settings.public_url.rstrip('/')}/webhooks/{prediction.provider}?{urlencode({'key': attempt.key})}"
    entry = attempt.entry
    order = Order(prediction.id, entry.model, entry.input, hook, entry.seconds)
    try:
        pulse.before_write()
    except HandBack as error:
        return error
    try:
        return attempt.provider.submit(order)
    except LeaseLost:
        raise
    except MoorageError as error:
        return error


def record(
    conn: Connection, deps: Deps, lease: Lease, provider: Provider, answer: Submitted | MoorageError
) -> list[Wake]:
    """
    Write down what a submission came to, under the lease of the one who sent it; returns wakes.

    Raises:
        LeaseLost: its webhook was faster, or another worker looks it up.
    """
    job, prediction = submit_outcome.locked(conn, lease)
    if isinstance(answer, Submitted):
        return _taken(conn, deps, lease, job, prediction, provider, answer)
    reason = storable(str(answer))
    if isinstance(answer, HandBack):
        submissions.back(conn, lease, wait_seconds=0, reason=f"not sent: {reason}", counted=False)
    elif isinstance(answer, NotSubmitted):
        return _again(conn, deps, lease, job, prediction, answer)
    elif isinstance(answer, Permanent):
        why = GiveUp(answer.category, type(answer).__name__, reason, answer.retryable)
        return submit_outcome.fail(conn, lease, job, prediction, why)
    elif submit_recovery.may_be_found(provider):
        reason = f"{submit_outcome.UNCERTAIN}: {reason}"
        leases.hand_back(conn, lease, wait_seconds=submit_recovery.LOOKS[0], reason=reason, counted=False)
    else:
        return submit_outcome.abandon(conn, lease, job, prediction, provider, reason, nothing_made=False)
    return []


def _taken(
    conn: Connection, deps: Deps, lease: Lease, job: Job, prediction: Prediction, provider: Provider, answer: Submitted
) -> list[Wake]:
    """Record its id; where the files have come with it, they take the path of every other report."""
    wakes = submit_outcome.take(conn, lease, job, prediction, provider, answer.external_id)
    current = predictions.lock(conn, prediction.id)
    if answer.report is None or current.external_id != answer.external_id:
        return wakes
    heard = reports.Hearing("poll", now(conn), lease.leased_by, deps.asset_base, provider.output_life_seconds)
    return reports.apply(conn, job, current, answer.report, heard).wakes


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
        return submit_outcome.fail(conn, lease, job, prediction, verdict)
    wait = (verdict.at - moment).total_seconds()
    submissions.back(conn, lease, wait_seconds=wait, reason=storable(verdict.reason), counted=verdict.counted)
    return []


def _last_try(conn: Connection, job: Job, prediction: Prediction) -> datetime:
    """Return until when it may be sent: where another entry follows it has its entry's time, else the job's."""
    entry = submissions.entry_of(job, prediction)
    if entry is None or settle.next_entry(conn, job) is None:
        return job.deadline_at
    return min(job.deadline_at, prediction.created_at + timedelta(seconds=entry.seconds))
