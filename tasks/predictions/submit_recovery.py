"""
Recovery of a submission without a recorded response: search the provider's list for the key in the webhook URL.

If the provider has no list, only the webhook can identify the prediction; it is awaited as long as a list is searched.
"""

from datetime import datetime, timedelta
from typing import Final

from db import predictions, submissions
from db.connection import Connection, current_time
from moorage import webhook_url_keys
from moorage.errors import LeaseLost, MoorageError, StepInterrupted
from moorage.failpoints import failpoint
from moorage.model import Lease, Prediction, Wake
from providers.base import Provider
from tasks import breakers
from tasks.jobs import create
from tasks.predictions import submit_outcome
from tasks.step import Deps, LeaseGuard, commit_step

LOOKUP_DELAYS_SECONDS: Final = (5.0, 15.0, 60.0)  # after the submission: a list may lag, the request may be in flight
CLOCK_SKEW: Final = timedelta(minutes=2)  # by which the provider's clock may be behind
UNRECOVERABLE_REASON: Final = (
    "its worker died before a response was recorded, and the provider has neither a list nor webhooks"
)


def is_recoverable(provider: Provider) -> bool:
    """Return True if the provider can identify a submission without a response, by its list or a webhook."""
    return provider.can_list or (provider.is_enabled and not provider.is_synchronous)


def recover_submission(
    deps: Deps, lease: Lease, guard: LeaseGuard, prediction: Prediction, provider: Provider | None
) -> list[Wake]:
    submitted_at, first_delay = prediction.submitted_at, LOOKUP_DELAYS_SECONDS[0]
    if submitted_at is None:
        raise LeaseLost(f"prediction {prediction.id} is no longer being submitted")
    if provider is None or not is_recoverable(provider):
        return commit_step(deps, lease, guard, lambda conn: _end_unrecoverable(conn, lease, provider)) or []
    if not provider.can_list:
        return commit_step(deps, lease, guard, lambda conn: _await_webhook(conn, lease, provider)) or []
    age = (lease.claimed_at - submitted_at).total_seconds()
    if 0 <= age < first_delay:  # below 0 the clock was set back, and the age is unknown
        deps.database.run(lambda conn: submissions.postpone(conn, lease, wait_seconds=first_delay - age))
        return []
    failpoint("lookup.before_request")
    result = _search_list(provider, prediction, min(submitted_at, lease.claimed_at) - CLOCK_SKEW, guard)
    failpoint("lookup.after_answer")
    if isinstance(result, MoorageError):
        breakers.note_api_error(deps, guard, provider.name, prediction.job_id, result)
    can_call = provider.can_call(deps.settings.public_url)  # else it was sent without a webhook
    wakes = commit_step(deps, lease, guard, lambda conn: _record(conn, lease, provider, result, can_call)) or []
    failpoint("lookup.after_commit")
    return wakes + create.wake_unmatched(deps.database, provider.name, result) if isinstance(result, str) else wakes


def _search_list(
    provider: Provider, prediction: Prediction, since: datetime, guard: LeaseGuard
) -> str | MoorageError | set[str]:
    """Return the external id; else the ids without a webhook, any of which it may be; an error if it cannot be read."""
    unnamed: set[str] = set()
    model = (prediction.model or "").lower()  # of a version or deployment: does not begin with its model's
    try:
        for page in provider.list_predictions(since):
            for listed in page:
                if webhook_url_keys.hash_key_in_url(listed.webhook) == prediction.key_sha256:
                    return listed.external_id
                is_other = listed.model and model.count("/") == 1 and not model.startswith(listed.model.lower())
                if listed.webhook is None and not is_other:
                    unnamed.add(listed.external_id)
            guard.check()
    except (LeaseLost, StepInterrupted):
        raise
    except MoorageError as error:
        return error
    return unnamed


def _record(
    conn: Connection, lease: Lease, provider: Provider, result: str | MoorageError | set[str], can_call: bool
) -> list[Wake]:
    leased = submit_outcome.lock_leased(conn, lease)
    if isinstance(result, str):
        return submit_outcome.record_external_id(leased, provider, result)
    now, last_delay = current_time(conn), LOOKUP_DELAYS_SECONDS[-1]
    age = (now - (leased.prediction.submitted_at or now)).total_seconds()
    next_delay = next((delay for delay in LOOKUP_DELAYS_SECONDS if delay > age), None)
    if next_delay is not None:
        wait = min(next_delay - age, last_delay)
        submissions.postpone(conn, lease, wait_seconds=wait, has_searched=isinstance(result, set))
    elif isinstance(result, set):
        known = predictions.find(conn, [provider.name] * len(result), list(result))
        not_created = can_call and len(known) == len(result)
        cause = f"not in the list of {provider.name} after {last_delay:g} s"
        cause += "" if not_created else ", which cannot identify what was sent without a webhook"
        return submit_outcome.abandon_submission(leased, provider, cause, not_created=not_created)
    elif now < leased.prediction.deadline_at:
        submissions.postpone(conn, lease, wait_seconds=LOOKUP_DELAYS_SECONDS[0])
    else:
        cause = f"the list of {provider.name} cannot be read: {result}"
        return submit_outcome.abandon_submission(leased, provider, cause)
    return []


def _await_webhook(conn: Connection, lease: Lease, provider: Provider) -> list[Wake]:
    """Wait until the prediction's deadline, at most as long as a list would be searched."""
    leased = submit_outcome.lock_leased(conn, lease)
    prediction, now, last_delay = leased.prediction, current_time(conn), LOOKUP_DELAYS_SECONDS[-1]
    end = min(prediction.deadline_at, (prediction.submitted_at or now) + timedelta(seconds=last_delay))
    remaining = (end - now).total_seconds()
    if remaining > 0:  # more than the last delay if the clock was set back
        submissions.postpone(conn, lease, wait_seconds=min(remaining, last_delay))
        return []
    cause = f"{provider.name} has no list, and no webhook was received in time"
    return submit_outcome.abandon_submission(leased, provider, cause)


def _end_unrecoverable(conn: Connection, lease: Lease, provider: Provider | None) -> list[Wake]:
    return submit_outcome.abandon_submission(submit_outcome.lock_leased(conn, lease), provider, UNRECOVERABLE_REASON)
