"""What follows a failed step: a retry at a time, or a dead letter with the reason; decided purely, written here."""

import random
from collections.abc import Mapping
from uuid import UUID

from db import dead_letters, deliveries, discarding, jobs, leases, notifications, outputs, predictions
from db.connection import Connection, current_time
from moorage import lifecycle
from moorage.errors import LeaseLost, MoorageError
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision, Retry, RetryContext
from moorage.model import Lease, Step, Wake
from moorage.text import to_storable
from tasks.jobs import settle
from tasks.step import Deps, LeaseGuard, commit_step


def record_failure(
    deps: Deps, lease: Lease, step: Step, error: MoorageError, pulse: LeaseGuard
) -> tuple[Retry | DeadLetterDecision | None, list[Wake]]:
    """
    Decide what follows a failure and write it under the lease; returns the decision and wakes.

    Raises:
        LeaseLost: another worker owns the row.
    """
    failpoint("failure.before_record")
    written = commit_step(deps, lease, pulse, lambda conn: _record(conn, deps, lease, step, error))
    failpoint("failure.after_record")
    return written or (None, [])


def _record(
    conn: Connection, deps: Deps, lease: Lease, step: Step, error: MoorageError
) -> tuple[Retry | DeadLetterDecision, list[Wake]]:
    moment = current_time(conn)
    output = outputs.get(conn, lease.row_id) if step == "keep" else None
    work = RetryContext(errors=lease.errors, expires_at=output.expires_at if output else None)
    jitter = random.random()  # noqa: S311 (spreads retries; nothing secret)
    verdict = lifecycle.decide_after_failure(error, work, now=moment, jitter=jitter, policy=deps.policy)
    if isinstance(verdict, DeadLetterDecision):
        return verdict, dead_letter_row(conn, deps, lease, step, verdict, error.facts)
    wait = max((verdict.run_at - moment).total_seconds(), 0.0)
    leases.reschedule(
        conn, lease, wait_seconds=wait, reason=to_storable(verdict.reason), counts_as_error=verdict.is_counted
    )
    return verdict, []


def dead_letter_row(
    conn: Connection, deps: Deps, lease: Lease, step: Step, why: DeadLetterDecision, facts: Mapping[str, object]
) -> list[Wake]:
    """End a leased row with a dead letter, and settle or fail its job; returns wakes."""
    reason, actor = to_storable(why.reason), lease.leased_by
    if lease.table == "deliveries":
        return _bury_delivery(conn, lease, why, step, facts)
    if lease.table == "predictions":
        return _bury_prediction(conn, lease, why, step, facts)
    if lease.table == "notices":
        return _bury_notice(conn, lease, why, step, facts)
    output = outputs.get(conn, lease.row_id)
    if output is None:
        return []
    job = jobs.lock(conn, output.job_id)
    if step == "discard":  # its objects now belong to no row: the orphan sweep takes them
        discarding.end_discarded(conn, lease)
        facts = {**facts, "keys": [output.key, output.thumb_key]}
    else:
        outputs.end_dead(conn, lease, why.category, reason)
    dead_letters.add(
        conn,
        "output",
        output.id,
        why,
        step=step,
        job_id=job.id,
        provider=output.provider,
        facts={"path": output.path, "attempts": lease.attempt, **facts},
        actor=actor,
    )
    return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=actor) if step == "keep" else []


def _bury_delivery(
    conn: Connection, lease: Lease, why: DeadLetterDecision, step: Step, facts: Mapping[str, object]
) -> list[Wake]:
    delivery = deliveries.get(conn, lease.row_id)
    deliveries.end(conn, lease, "dead", to_storable(why.reason))
    dead_letters.add(
        conn,
        "delivery",
        lease.row_id,
        why,
        step=step,
        provider=delivery.provider if delivery else None,
        facts=facts,
        actor=lease.leased_by,
    )
    return []


def _bury_notice(
    conn: Connection, lease: Lease, why: DeadLetterDecision, step: Step, facts: Mapping[str, object]
) -> list[Wake]:
    job_id = notifications.end_dead(conn, lease, why.category, to_storable(why.reason))
    facts = {"attempts": lease.attempt, **facts}
    dead_letters.add(conn, "notice", lease.row_id, why, step=step, job_id=job_id, facts=facts, actor=lease.leased_by)
    return []


def _bury_prediction(
    conn: Connection, lease: Lease, why: DeadLetterDecision, step: Step, facts: Mapping[str, object]
) -> list[Wake]:
    found = predictions.get(conn, lease.row_id)
    if found is None:
        return []
    job = jobs.lock(conn, found.job_id)
    prediction = predictions.lock(conn, found.id)
    if prediction.state not in predictions.LIVE_STATES:
        return []
    if not leases.is_current(conn, lease):
        raise LeaseLost(f"prediction {prediction.id}: the lease is lost")
    predictions.end(
        conn,
        prediction,
        "lost",
        ended_by="us",
        actor=lease.leased_by,
        category=why.category,
        reason=to_storable(why.reason),
    )
    dead_letters.add(
        conn,
        "prediction",
        prediction.id,
        why,
        step=step,
        job_id=job.id,
        provider=prediction.provider,
        facts=facts,
        actor=lease.leased_by,
    )
    return settle.advance(conn, job, why, actor=lease.leased_by)


def dead_letter_poison(deps: Deps, step: Step, row_id: UUID, actor: str) -> list[Wake]:
    """Make a row that has crashed too often a dead letter, before any code that could crash; returns wakes."""
    limit = deps.settings.constants.max_crashes
    reason = f"{limit} workers died while they worked on this"
    why = DeadLetterDecision("POISON", "Poison", reason, retryable=True)
    failpoint("poison.before_record")
    wakes = deps.database.run(lambda conn: _poison(conn, deps, step, row_id, why, actor))
    failpoint("poison.after_record")
    return wakes


def _poison(conn: Connection, deps: Deps, step: Step, row_id: UUID, why: DeadLetterDecision, actor: str) -> list[Wake]:
    limit = deps.settings.constants.max_crashes
    if step == "ingest":
        delivery = deliveries.get(conn, row_id)
        if delivery and deliveries.poison(conn, row_id, why.reason, max_crashes=limit, actor=actor):
            dead_letters.add(conn, "delivery", row_id, why, step=step, provider=delivery.provider, actor=actor)
        return []
    if step == "notify":
        job_id = notifications.poison(conn, row_id, why.reason, max_crashes=limit, actor=actor)
        if job_id is not None:
            dead_letters.add(conn, "notice", row_id, why, step=step, job_id=job_id, actor=actor)
        return []
    if step in ("submit", "generate", "poll"):
        return _poison_prediction(conn, step, row_id, why, limit, actor)
    output = outputs.get(conn, row_id)
    if output is None:
        return []
    job = jobs.lock(conn, output.job_id)
    if not outputs.poison(conn, row_id, why.reason, max_crashes=limit, actor=actor):
        return []
    dead_letters.add(
        conn,
        "output",
        row_id,
        why,
        step=step,
        job_id=job.id,
        provider=output.provider,
        actor=actor,
        facts={"path": output.path},
    )
    return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=actor)


def _poison_prediction(
    conn: Connection, step: Step, row_id: UUID, why: DeadLetterDecision, limit: int, actor: str
) -> list[Wake]:
    found = predictions.get(conn, row_id)
    if found is None:
        return []
    job = jobs.lock(conn, found.job_id)
    if not predictions.poison(conn, row_id, why.reason, max_crashes=limit, actor=actor):
        return []
    dead_letters.add(conn, "prediction", row_id, why, step=step, job_id=job.id, provider=found.provider, actor=actor)
    return settle.advance(conn, job, why, actor=actor)
