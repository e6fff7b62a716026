"""Poll: a prediction whose webhook did not come, or whose time is up."""

from datetime import datetime

from db import dead_letters, jobs, leases, predictions
from db.connect import Connection, now
from moorage.errors import LeaseLost, MoorageError, ProviderRefused, ProviderUnavailable
from moorage.failpoints import failpoint
from moorage.lifecycle import GiveUp
from moorage.model import Job, Lease, Prediction, Report, Wake
from moorage.text import storable
from providers.base import Provider
from tasks import apply, settle, tries
from tasks.deps import Deps, Pulse
from tasks.writeback import write_back

GONE = (404, 410)


def run(deps: Deps, lease: Lease, pulse: Pulse) -> list[Wake]:
    """Ask the provider what became of one prediction and carry out the answer; returns wakes."""
    prediction = deps.database.run(lambda conn: predictions.get(conn, lease.row_id))
    provider = deps.providers.get(prediction.provider) if prediction else None
    if prediction is None:
        return []
    report, error = _ask(provider, prediction)
    failpoint("poll.after_answer")

    def answer(conn: Connection) -> list[Wake]:
        job = jobs.lock(conn, prediction.job_id)
        current = predictions.lock(conn, prediction.id)
        return _answer(conn, deps, lease, job, current, provider, report, error)

    wakes = write_back(deps, lease, pulse, answer)
    failpoint("poll.after_commit")
    return wakes or []


def _ask(provider: Provider | None, prediction: Prediction) -> tuple[Report | None, MoorageError | None]:
    if provider is None or not provider.can_poll or prediction.external_id is None:
        return None, None
    failpoint("poll.before_request")
    try:
        return provider.poll(prediction.external_id, prediction.model), None
    except MoorageError as error:
        return None, error


def _answer(
    conn: Connection,
    deps: Deps,
    lease: Lease,
    job: Job,
    prediction: Prediction,
    provider: Provider | None,
    report: Report | None,
    error: MoorageError | None,
) -> list[Wake]:
    moment = now(conn)
    if prediction.state not in predictions.LIVE:
        return []  # a webhook was faster, and ended our lease with the prediction
    if not leases.holds(conn, lease):
        raise LeaseLost(f"prediction {prediction.id}: the lease is lost")
    if report is not None:
        life = provider.output_life_seconds if provider else None
        heard = apply.Hearing("poll", moment, lease.leased_by, deps.asset_base, life)
        applied = apply.apply(conn, job, prediction, report, heard)
        if applied.ended:
            return applied.wakes
    if isinstance(error, ProviderRefused) and error.facts.get("status") in GONE:
        why = GiveUp("PROVIDER_FAILED", "ProviderRefused", storable(str(error)), retryable=False)
        _lose(conn, lease, job, prediction, why)
    elif moment >= predictions.until(prediction) and prediction.external_id is None:
        _never_heard_of(conn, lease, prediction)
    elif moment >= predictions.until(prediction):
        _time_out(conn, lease, job, prediction, provider, error)
    else:
        _wait(conn, lease, prediction, provider, error, moment)
    return []


def _wait(
    conn: Connection,
    lease: Lease,
    prediction: Prediction,
    provider: Provider | None,
    error: MoorageError | None,
    moment: datetime,
) -> None:
    """Come again on the provider's clock, or when it asks for; at the latest when our time is up."""
    rest = (predictions.until(prediction) - moment).total_seconds()
    can_ask = provider is not None and provider.can_poll and prediction.external_id is not None
    seconds = provider.next_poll_seconds(prediction.polls + 1) if provider and can_ask else rest
    if isinstance(error, ProviderUnavailable) and error.retry_after:
        seconds = max(seconds, error.retry_after)
    predictions.wait(conn, lease, wait_seconds=seconds, polled=can_ask)


def _never_heard_of(conn: Connection, lease: Lease, prediction: Prediction) -> None:
    """End a try that may never have been made: no file of it is missed, so it is no dead letter."""
    reason = f"{tries.UNCERTAIN}: never heard of"
    actor = lease.leased_by
    predictions.end(
        conn, prediction, "failed", ended_by="deadline", actor=actor, category="PROVIDER_FAILED", reason=reason
    )


def _time_out(
    conn: Connection,
    lease: Lease,
    job: Job,
    prediction: Prediction,
    provider: Provider | None,
    error: MoorageError | None,
) -> None:
    """Our time is up and the provider was asked once more: abandon it; when the output life is over too, it is lost."""
    silence = f"; asking failed: {storable(str(error), 500)}" if error else ""
    if prediction.state == "abandoned":
        reason = f"no answer came before the end of the output life{silence}"
        _lose(conn, lease, job, prediction, GiveUp("TIMED_OUT", "NoAnswer", reason, retryable=True))
        return
    life = provider.output_life_seconds if provider and provider.output_life_seconds else 3600.0
    reason = f"no answer within the time limit{silence}"
    predictions.abandon(conn, lease, life_seconds=life, reason=reason)
    awaited = bool(predictions.awaited(conn, job.id))
    why = GiveUp("TIMED_OUT", "NoAnswer", reason, retryable=True)
    settle.fail_if_unawaited(conn, job, awaited=awaited, why=why, actor=lease.leased_by)


def _lose(conn: Connection, lease: Lease, job: Job, prediction: Prediction, why: GiveUp) -> None:
    ended_by = "deadline" if why.category == "TIMED_OUT" else "poll"
    predictions.end(
        conn, prediction, "lost", ended_by=ended_by, actor=lease.leased_by, category=why.category, reason=why.reason
    )
    dead_letters.add(
        conn,
        "prediction",
        prediction.id,
        why,
        step="poll",
        job_id=job.id,
        provider=prediction.provider,
        actor=lease.leased_by,
    )
    awaited = bool(predictions.awaited(conn, job.id))
    settle.fail_if_unawaited(conn, job, awaited=awaited, why=why, actor=lease.leased_by)
