"""
Submit: a planned prediction, sent to its provider once.

That it is about to be sent is committed before, with the hash of a key that stands in the webhook address: whatever
becomes of the answer, the prediction's webhook finds its row by that key, and so does a look into the provider's list.
"""

import hashlib
import random
import secrets
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlencode

from db import jobs, predictions, submits
from db.connect import Connection, now
from moorage.errors import HandBack, LeaseLost, MoorageError, Permanent
from moorage.exchange import Order, Submitted
from moorage.failpoints import failpoint
from moorage.lifecycle import GiveUp
from moorage.model import Entry, Job, Lease, Prediction, Wake
from providers.base import Provider
from tasks import answered, chain, lookup, references, tries
from tasks.deps import Deps, Pulse
from tasks.writeback import write_back

ROOM_SECONDS: Final = 1.0  # how long one waits that finds no room at its provider; by chance half as long again


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
        deps.database.run(lambda conn: submits.wait(conn, lease, wait_seconds=0))
        return [Wake("generate", lease.row_id)]
    return generate(deps, lease, pulse)


def generate(deps: Deps, lease: Lease, pulse: Pulse) -> list[Wake]:
    """Submit one prediction, or look up what became of a submission that was not recorded; returns wakes."""
    prediction, job = deps.database.run(lambda conn: _read(conn, lease))
    provider = deps.providers.get(prediction.provider)
    if prediction.state == "submitting":
        return lookup.run(deps, lease, pulse, prediction, provider)
    entry = submits.entry_of(job, prediction)
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
    written = write_back(deps, lease, pulse, lambda conn: answered.record(conn, deps, lease, provider, answer))
    failpoint("submit.after_commit")
    came_before = tries.match(deps, provider, answer.external_id) if isinstance(answer, Submitted) else []
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
        job, prediction = tries.locked(conn, lease)
        return tries.fail(conn, lease, job, prediction, why)

    return write_back(deps, lease, pulse, end) or []


def _begin(conn: Connection, lease: Lease, attempt: Try) -> tuple[bool, list[Wake]]:
    """Say that it is about to be sent, if it still is to be, and there is room; run twice it does it once."""
    job, prediction = tries.locked(conn, lease)
    if prediction.key_sha256 == attempt.key_sha256:
        return True, []  # an uncertain COMMIT had happened
    if job.state != "open":
        reason = f"not submitted: the job was {job.state} already"
        predictions.end(conn, prediction, "cancelled", ended_by="us", actor=lease.leased_by, reason=reason)
        return False, chain.go_on(conn, job, GiveUp("TIMED_OUT", "Unneeded", reason, False), actor=lease.leased_by)
    if now(conn) >= job.deadline_at:
        why = GiveUp("TIMED_OUT", "NoTime", "the job's deadline passed before it could be submitted", retryable=True)
        return False, tries.fail(conn, lease, job, prediction, why)
    if not submits.has_room(conn, prediction.provider, attempt.provider.submit_concurrency):
        submits.wait(conn, lease, wait_seconds=ROOM_SECONDS * random.uniform(1.0, 1.5))  # noqa: S311 (spreads them)
        return False, []
    submits.begin(conn, lease, key_sha256=attempt.key_sha256, seconds=attempt.entry.seconds)
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
