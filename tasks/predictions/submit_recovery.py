"""
Lookup: what became of a submission whose answer nobody recorded, by the provider's own list.

A provider without one can still tell by its webhook, whose address names the try: that is waited for, and no longer.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qs, urlsplit

from db import submissions
from db.connection import Connection, now
from moorage.errors import HandBack, LeaseLost, MoorageError
from moorage.failpoints import failpoint
from moorage.model import Lease, Prediction, Wake
from providers.base import Provider
from tasks.predictions import submit_outcome
from tasks.step import Deps, Pulse, write_back

LOOKS: Final = (5.0, 15.0, 60.0)  # seconds after the submission: a list may lag, and the request may be under way
SKEW: Final = timedelta(minutes=2)  # the provider's clock may be behind ours
UNSEEN: Final = "its worker died before an answer was recorded, and the provider keeps no list and sends no webhook"


def may_be_found(provider: Provider) -> bool:
    """Return whether a provider can still tell of an order that it did not answer: by its list, or by a webhook."""
    return provider.can_list or (provider.enabled and not provider.synchronous)


def run(deps: Deps, lease: Lease, pulse: Pulse, prediction: Prediction, provider: Provider | None) -> list[Wake]:
    """Look for a submitted prediction by the key in its webhook address, when its time has come; returns wakes."""
    since = prediction.submitted_at
    if since is None:
        raise LeaseLost(f"prediction {prediction.id} is no longer being submitted")
    if provider is None or not may_be_found(provider):
        return write_back(deps, lease, pulse, lambda conn: _end_unseen(conn, lease, provider)) or []
    if not provider.can_list:
        return write_back(deps, lease, pulse, lambda conn: _await_webhook(conn, lease, provider)) or []
    age = (lease.claimed_at - since).total_seconds()
    if 0 <= age < LOOKS[0]:  # below 0 the clock was set back: nobody knows how old it is
        deps.database.run(lambda conn: submissions.wait(conn, lease, wait_seconds=LOOKS[0] - age))
        return []
    failpoint("lookup.before_request")
    found = _look(provider, prediction, min(since, lease.claimed_at) - SKEW, pulse)
    failpoint("lookup.after_answer")
    written = write_back(deps, lease, pulse, lambda conn: _record(conn, lease, provider, found))
    failpoint("lookup.after_commit")
    return [*(written or []), *(submit_outcome.match(deps, provider, found) if isinstance(found, str) else [])]


def _look(provider: Provider, prediction: Prediction, since: datetime, pulse: Pulse) -> str | MoorageError | None:
    """Return the provider's id of it; None where its list does not show it, an error without a list."""
    try:
        for page in provider.list_since(since):
            for listed in page:
                if key_sha256(listed.webhook) == prediction.key_sha256:
                    return listed.external_id
            pulse()
    except (LeaseLost, HandBack):
        raise
    except MoorageError as error:
        return error
    return None


def key_sha256(address: str | None) -> str | None:
    """Return the hash of the key in a webhook address; None where it holds none."""
    try:
        keys = parse_qs(urlsplit(address or "").query).get("key")
    except ValueError:  # what a list calls an address may be none
        return None
    return hashlib.sha256(keys[0].encode("utf-8", "replace")).hexdigest() if keys else None


def _record(conn: Connection, lease: Lease, provider: Provider, found: str | MoorageError | None) -> list[Wake]:
    job, prediction = submit_outcome.locked(conn, lease)
    if isinstance(found, str):
        return submit_outcome.take(conn, lease, job, prediction, provider, found)
    moment = now(conn)
    age = (moment - (prediction.submitted_at or moment)).total_seconds()
    following = next((look for look in LOOKS if look > age), None)
    if following is not None:
        submissions.wait(conn, lease, wait_seconds=min(following - age, LOOKS[-1]), looked=found is None)
    elif found is None:
        why = f"{provider.name}'s list does not show it after {LOOKS[-1]:g} s"
        return submit_outcome.abandon(conn, lease, job, prediction, provider, why, nothing_made=True)
    elif moment < prediction.deadline_at:
        submissions.wait(conn, lease, wait_seconds=LOOKS[0])
    else:
        why = f"the list that would show it cannot be read: {found}"
        return submit_outcome.abandon(conn, lease, job, prediction, provider, why, nothing_made=False)
    return []


def _await_webhook(conn: Connection, lease: Lease, provider: Provider) -> list[Wake]:
    """Leave it as it is until its time limit, but not beyond the last look that a list would get."""
    job, prediction = submit_outcome.locked(conn, lease)
    moment = now(conn)
    since = prediction.submitted_at or moment
    left = (min(prediction.deadline_at, since + timedelta(seconds=LOOKS[-1])) - moment).total_seconds()
    if left > 0:  # above what there ever was, the clock was set back
        submissions.wait(conn, lease, wait_seconds=min(left, LOOKS[-1]))
        return []
    why = f"{provider.name} keeps no list, and no webhook told of it in time"
    return submit_outcome.abandon(conn, lease, job, prediction, provider, why, nothing_made=False)


def _end_unseen(conn: Connection, lease: Lease, provider: Provider | None) -> list[Wake]:
    job, prediction = submit_outcome.locked(conn, lease)
    return submit_outcome.abandon(conn, lease, job, prediction, provider, UNSEEN, nothing_made=False)
