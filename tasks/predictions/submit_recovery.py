"""
Lookup: what became of a submission whose answer nobody recorded, by the provider's own list.

A provider without one can still tell by its webhook, whose address names the try: that is waited for, and no longer.
"""

from datetime import datetime, timedelta
from typing import Final

from db import submissions
from db.connection import Connection, current_time
from moorage import webhook_keys
from moorage.errors import LeaseLost, MoorageError, StepInterrupted
from moorage.failpoints import failpoint
from moorage.model import Lease, Prediction, Wake
from providers.base import Provider
from tasks.predictions import submit_outcome
from tasks.step import Deps, LeaseGuard, commit_step

LOOKUP_DELAYS_SECONDS: Final = (
    5.0,
    15.0,
    60.0,
)  # seconds after the submission: a list may lag, and the request may be under way
CLOCK_SKEW: Final = timedelta(minutes=2)  # the provider's clock may be behind ours
UNRECOVERABLE_REASON: Final = (
    "its worker died before an answer was recorded, and the provider keeps no list and sends no webhook"
)


def is_recoverable(provider: Provider) -> bool:
    """Return whether a provider can still tell of an order that it did not answer: by its list, or by a webhook."""
    return provider.can_list or (provider.is_enabled and not provider.is_synchronous)


def recover_submission(
    deps: Deps, lease: Lease, pulse: LeaseGuard, prediction: Prediction, provider: Provider | None
) -> list[Wake]:
    """Look for a submitted prediction by the key in its webhook address, when its time has come; returns wakes."""
    since = prediction.submitted_at
    if since is None:
        raise LeaseLost(f"prediction {prediction.id} is no longer being submitted")
    if provider is None or not is_recoverable(provider):
        return commit_step(deps, lease, pulse, lambda conn: _end_unseen(conn, lease, provider)) or []
    if not provider.can_list:
        return commit_step(deps, lease, pulse, lambda conn: _await_webhook(conn, lease, provider)) or []
    age = (lease.claimed_at - since).total_seconds()
    if 0 <= age < LOOKUP_DELAYS_SECONDS[0]:  # below 0 the clock was set back: nobody knows how old it is
        deps.database.run(lambda conn: submissions.postpone(conn, lease, wait_seconds=LOOKUP_DELAYS_SECONDS[0] - age))
        return []
    failpoint("lookup.before_request")
    found = _look(provider, prediction, min(since, lease.claimed_at) - CLOCK_SKEW, pulse)
    failpoint("lookup.after_answer")
    written = commit_step(deps, lease, pulse, lambda conn: _record(conn, lease, provider, found))
    failpoint("lookup.after_commit")
    return [
        *(written or []),
        *(submit_outcome.match_deliveries(deps, provider, found) if isinstance(found, str) else []),
    ]


def _look(provider: Provider, prediction: Prediction, since: datetime, pulse: LeaseGuard) -> str | MoorageError | None:
    """Return the provider's id of it; None where its list does not show it, an error without a list."""
    try:
        for page in provider.list_predictions(since):
            for listed in page:
                if webhook_keys.hash_key_in_url(listed.webhook) == prediction.key_sha256:
                    return listed.external_id
            pulse()
    except (LeaseLost, StepInterrupted):
        raise
    except MoorageError as error:
        return error
    return None


def _record(conn: Connection, lease: Lease, provider: Provider, found: str | MoorageError | None) -> list[Wake]:
    job, prediction = submit_outcome.lock_leased(conn, lease)
    if isinstance(found, str):
        return submit_outcome.record_external_id(conn, lease, job, prediction, provider, found)
    moment = current_time(conn)
    age = (moment - (prediction.submitted_at or moment)).total_seconds()
    following = next((look for look in LOOKUP_DELAYS_SECONDS if look > age), None)
    if following is not None:
        submissions.postpone(
            conn, lease, wait_seconds=min(following - age, LOOKUP_DELAYS_SECONDS[-1]), has_searched=found is None
        )
    elif found is None:
        why = f"{provider.name}'s list does not show it after {LOOKUP_DELAYS_SECONDS[-1]:g} s"
        return submit_outcome.abandon_submission(conn, lease, job, prediction, provider, why, not_created=True)
    elif moment < prediction.deadline_at:
        submissions.postpone(conn, lease, wait_seconds=LOOKUP_DELAYS_SECONDS[0])
    else:
        why = f"the list that would show it cannot be read: {found}"
        return submit_outcome.abandon_submission(conn, lease, job, prediction, provider, why, not_created=False)
    return []


def _await_webhook(conn: Connection, lease: Lease, provider: Provider) -> list[Wake]:
    """Leave it as it is until its time limit, but not beyond the last look that a list would get."""
    job, prediction = submit_outcome.lock_leased(conn, lease)
    moment = current_time(conn)
    since = prediction.submitted_at or moment
    left = (min(prediction.deadline_at, since + timedelta(seconds=LOOKUP_DELAYS_SECONDS[-1])) - moment).total_seconds()
    if left > 0:  # above what there ever was, the clock was set back
        submissions.postpone(conn, lease, wait_seconds=min(left, LOOKUP_DELAYS_SECONDS[-1]))
        return []
    why = f"{provider.name} keeps no list, and no webhook told of it in time"
    return submit_outcome.abandon_submission(conn, lease, job, prediction, provider, why, not_created=False)


def _end_unseen(conn: Connection, lease: Lease, provider: Provider | None) -> list[Wake]:
    job, prediction = submit_outcome.lock_leased(conn, lease)
    return submit_outcome.abandon_submission(
        conn, lease, job, prediction, provider, UNRECOVERABLE_REASON, not_created=False
    )
