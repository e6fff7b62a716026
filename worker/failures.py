"""What follows a failed step: a retry at a time, or a dead letter with the reason; decided purely, written here."""

import random
from collections.abc import Mapping
from uuid import UUID

from db import dead_letters, deliveries, discarding, jobs, leases, notifications, outputs, predictions
from db.connection import Connection, now
from moorage import lifecycle
from moorage.errors import LeaseLost, MoorageError
from moorage.failpoints import failpoint
from moorage.lifecycle import GiveUp, Retry, Work
from moorage.model import Lease, Step, Wake
from moorage.text import storable
from tasks.jobs import settle
from tasks.step import Deps, Pulse, write_back


def record(
    deps: Deps, lease: Lease, step: Step, error: MoorageError, pulse: Pulse
) -> tuple[Retry | GiveUp | None, list[Wake]]:
    """
    Decide what follows a failure and write it under the lease; returns the decision and wakes.

    Raises:
        LeaseLost: another worker owns the row.
    """
    failpoint("failure.before_record")
    written = write_back(deps, lease, pulse, lambda conn: _record(conn, deps, lease, step, error))
    failpoint("failure.after_record")
    return written or (None, [])


def _record(
    conn: Connection, deps: Deps, lease: Lease, step: Step, error: MoorageError
) -> tuple[Retry | GiveUp, list[Wake]]:
    moment = now(conn)
    output = outputs.get(conn, lease.row_id) if step == "keep" else None
    work = Work(errors=lease.errors, expires_at=output.expires_at if output else None)
    jitter = random.random()  # noqa: S311 (spreads retries; nothing secret)
    verdict = lifecycle.after_failure(error, work, now=moment, jitter=jitter, policy=deps.policy)
    if isinstance(verdict, GiveUp):
        return verdict, give_up(conn, deps, lease, step, verdict, error.facts)
    wait = max((verdict.at - moment).total_seconds(), 0.0)
    leases.hand_back(conn, lease, wait_seconds=wait, reason=storable(verdict.reason), counted=verdict.counted)
    return verdict, []


def give_up(
    conn: Connection, deps: Deps, lease: Lease, step: Step, why: GiveUp, facts: Mapping[str, object]
) -> list[Wake]:
    """End a leased row with a dead letter, and settle or fail its job; returns wakes."""
    reason, actor = storable(why.reason), lease.leased_by
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
        discarding.end(conn, lease)
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
    return settle.if_last(conn, job, asset_base=deps.asset_base, actor=actor) if step == "keep" else []


def _bury_delivery(conn: Connection, lease: Lease, why: GiveUp, step: Step, facts: Mapping[str, object]) -> list[Wake]:
    delivery = deliveries.get(conn, lease.row_id)
    deliveries.end(conn, lease, "dead", storable(why.reason))
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


def _bury_notice(conn: Connection, lease: Lease, why: GiveUp, step: Step, facts: Mapping[str, object]) -> list[Wake]:
    job_id = notifications.end_dead(conn, lease, why.category, storable(why.reason))
    facts = {"attempts": lease.attempt, **facts}
    dead_letters.add(conn, "notice", lease.row_id, why, step=step, job_id=job_id, facts=facts, actor=lease.leased_by)
    return []


def _bury_prediction(
    conn: Connection, lease: Lease, why: GiveUp, step: Step, facts: Mapping[str, object]
) -> list[Wake]:
    found = predictions.get(conn, lease.row_id)
    if found is None:
        return []
    job = jobs.lock(conn, found.job_id)
    prediction = predictions.lock(conn, found.id)
    if prediction.state not in predictions.LIVE:
        return []
    if not leases.holds(conn, lease):
        raise LeaseLost(f"prediction {prediction.id}: the lease is lost")
    predictions.end(
        conn,
        prediction,
        "lost",
        ended_by="us",
        actor=lease.leased_by,
        category=why.category,
        reason=storable(why.reason),
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
    return settle.go_on(conn, job, why, actor=lease.leased_by)


def poison(deps: Deps, step: Step, row_id: UUID, actor: str) -> list[Wake]:
    """Make a row that has crashed too often a dead letter, before any code that could crash; returns wakes."""
    limit = deps.settings.constants.max_crashes
    reason = f"{limit} workers died while they worked on this"
    why = GiveUp("POISON", "Poison", reason, retryable=True)
    failpoint("poison.before_record")
    wakes = deps.database.run(lambda conn: _poison(conn, deps, step, row_id, why, actor))
    failpoint("poison.after_record")
    return wakes


def _poison(conn: Connection, deps: Deps, step: Step, row_id: UUID, why: GiveUp, actor: str) -> list[Wake]:
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
    return settle.if_last(conn, job, asset_base=deps.asset_base, actor=actor)


def _poison_prediction(conn: Connection, step: Step, row_id: UUID, why: GiveUp, limit: int, actor: str) -> list[Wake]:
    found = predictions.get(conn, row_id)
    if found is None:
        return []
    job = jobs.lock(conn, found.job_id)
    if not predictions.poison(conn, row_id, why.reason, max_crashes=limit, actor=actor):
        return []
    dead_letters.add(conn, "prediction", row_id, why, step=step, job_id=job.id, provider=found.provider, actor=actor)
    return settle.go_on(conn, job, why, actor=actor)
