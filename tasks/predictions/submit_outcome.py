"""A try: one submission of a job's chain, held under a lease, and what may become of it."""

from typing import Final

from db import deliveries, jobs, leases, predictions, submissions
from db.connection import Connection
from moorage.errors import LeaseLost
from moorage.lifecycle import DeadLetterDecision
from moorage.model import Job, Lease, Prediction, Wake
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import settle
from tasks.step import Deps

UNCERTAIN: Final = "submit uncertain"  # db/submissions.py knows such tries by these words
DEFAULT_OUTPUT_LIFE_SECONDS: Final = 3600.0  # how long a webhook is waited for, where the provider has no output life


def lock_leased(conn: Connection, lease: Lease) -> tuple[Job, Prediction]:
    """Lock the job and then the prediction of a lease; LeaseLost when the row no longer carries its token."""
    found = predictions.get(conn, lease.row_id)
    if found is None:
        raise LeaseLost(f"prediction {lease.row_id} is gone")
    job, prediction = jobs.lock(conn, found.job_id), predictions.lock(conn, found.id)
    if not leases.is_current(conn, lease):
        raise LeaseLost(f"prediction {lease.row_id}: the lease is lost")
    return job, prediction


def record_external_id(
    conn: Connection, lease: Lease, job: Job, prediction: Prediction, provider: Provider, external_id: str
) -> list[Wake]:
    """Record that the provider made it, under this id; returns wakes."""
    first = provider.first_poll_seconds()
    reason = to_storable(f"{provider.name} {external_id}", 200)
    if submissions.mark_running(conn, lease, external_id, first_poll_seconds=first, reason=reason):
        return []
    taken = f"{reason} is watched as the prediction of another job already"
    return fail_prediction(
        conn, lease, job, prediction, DeadLetterDecision("PROVIDER_FAILED", "Taken", taken, retryable=False)
    )


def fail_prediction(
    conn: Connection, lease: Lease, job: Job, prediction: Prediction, why: DeadLetterDecision
) -> list[Wake]:
    """End what its provider, or its own input, does not allow, and go on with the chain; that is no dead letter."""
    reason, actor = to_storable(why.reason), lease.leased_by
    predictions.end(conn, prediction, "failed", ended_by="us", actor=actor, category=why.category, reason=reason)
    return settle.advance(conn, job, why, actor=actor)


def abandon_submission(
    conn: Connection,
    lease: Lease,
    job: Job,
    prediction: Prediction,
    provider: Provider | None,
    why: str,
    *,
    not_created: bool,
) -> list[Wake]:
    """
    Stop waiting for a try that nobody knows the fate of, but for its webhook, and go on with the chain.

    Args:
        nothing_made: the provider's list does not show it: then its entry is tried once more, before the next one.
    """
    life = (
        provider.output_lifetime_seconds
        if provider and provider.output_lifetime_seconds
        else DEFAULT_OUTPUT_LIFE_SECONDS
    )
    reason = to_storable(f"{UNCERTAIN}: {why}")
    submissions.abandon(conn, lease, output_life_seconds=life, reason=reason)
    entry = submissions.get_entry(job, prediction)
    once_more = not_created and job.state == "open" and prediction.cancel_reason is None
    if (
        once_more
        and entry is not None
        and prediction.entry is not None
        and not submissions.is_second(conn, prediction.id)
    ):
        again = submissions.plan(conn, job.id, prediction.entry, entry, reason=reason, actor=lease.leased_by)
        return [Wake("submit", again)]
    silence = DeadLetterDecision("PROVIDER_FAILED", "SubmitUncertain", reason, retryable=True)
    return settle.advance(conn, job, silence, actor=lease.leased_by)


def bind_external_id(
    conn: Connection, provider: Provider, key_sha256: str | None, external_id: str, *, actor: str
) -> Prediction | None:
    """
    Return the prediction that was submitted with a key, from now on known by the provider's id, and locked.

    None where no prediction waits for an id under that key: then what named the id is judged by the id alone.
    """
    named = submissions.find_by_webhook_key(conn, provider.name, key_sha256) if key_sha256 else None
    if named is None:
        return None
    jobs.lock(conn, named.job_id)
    prediction = predictions.lock(conn, named.prediction_id)
    if prediction.external_id is None:
        first = provider.first_poll_seconds()
        reason = to_storable(f"the key in its webhook address names it {provider.name} {external_id}", 200)
        submissions.assign_external_id(
            conn, prediction, external_id, first_poll_seconds=first, reason=reason, actor=actor
        )
    return predictions.find_by_external_id(conn, provider.name, external_id)


def match_deliveries(deps: Deps, provider: Provider, external_id: str) -> list[Wake]:
    """Wake the deliveries that came before the provider's id was recorded, after that was committed."""
    woken = deps.database.run(lambda conn: deliveries.make_unmatched_due(conn, provider.name, external_id))
    return [Wake("ingest", delivery_id) for delivery_id in woken]
