"""Records a failed step: a retry, or a dead letter and the advance of the job. moorage/lifecycle.py decides which."""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final
from uuid import UUID

from db import deferral, deliveries, leases, notifications, outputs, poison, predictions
from db.connection import Connection, current_time
from moorage import logs, retry_policy
from moorage.errors import MoorageError
from moorage.failpoints import failpoint
from moorage.model import Job, Lease, Step, Wake, WorkTable
from moorage.retry_policy import DeadLetterDecision, Retry, RetryContext
from moorage.text import to_storable
from tasks.jobs import fallback, settle
from tasks.step import Deps, LeaseGuard, commit_step

log = logs.get_logger(__name__)

# They end a row; those of a job's rows return the job, locked.
DEAD_LETTER: Final[Mapping[WorkTable, Callable[..., Job | None]]] = {
    "deliveries": deliveries.dead_letter,
    "predictions": predictions.dead_letter,
    "outputs": outputs.dead_letter,
    "notifications": notifications.dead_letter,
}


def record_failure(
    deps: Deps, lease: Lease, step: Step, error: MoorageError, guard: LeaseGuard
) -> tuple[Retry | DeadLetterDecision | None, list[Wake]]:
    """
    Decide between retry and dead letter, and write that under the lease; return the decision and wakes.

    The decision is None if the commit was uncertain and had taken place. Raises LeaseLost.
    """
    work = partial(_record, deps=deps, lease=lease, step=step, error=error)
    return commit_step(deps, lease, guard, work, point="failure") or (None, [])


def _record(
    conn: Connection, deps: Deps, lease: Lease, step: Step, error: MoorageError
) -> tuple[Retry | DeadLetterDecision, list[Wake]]:
    now = current_time(conn)
    ctx = RetryContext(lease.errors, work="notification" if step == "notify" else "other")
    if step == "keep":
        life_seconds, quarantine_seconds = deps.policy.source_seconds, deps.settings.quarantine_seconds
        ctx = outputs.read_retry_context(conn, lease, life_seconds=life_seconds, quarantine_seconds=quarantine_seconds)
    jitter = random.random()  # noqa: S311 (spreads retries; nothing secret)
    decision = retry_policy.decide_after_failure(error, ctx, now=now, jitter=jitter, policy=deps.policy)
    if isinstance(decision, DeadLetterDecision):
        return decision, dead_letter_row(conn, deps, lease, step, decision, error.facts)
    wait = max((decision.run_at - now).total_seconds(), 0.0)
    reason, counted = to_storable(decision.reason), decision.is_counted
    job = deferral.defer(conn, lease, error.category) if decision.defers else None
    leases.reschedule(conn, lease, wait_seconds=wait, reason=reason, counts_as_error=counted, kind=decision.kind)
    return decision, _settle_or_advance(conn, deps, job, step, decision, lease.leased_by)


def dead_letter_row(
    conn: Connection, deps: Deps, lease: Lease, step: Step, decision: DeadLetterDecision, facts: Mapping[str, object]
) -> list[Wake]:
    """End a leased row with a dead letter and advance its job; return wakes. Raises LeaseLost."""
    job = DEAD_LETTER[lease.table](conn, lease, decision, step=step, facts=facts)
    return _settle_or_advance(conn, deps, job, step, decision, lease.leased_by)


Poisoned = tuple[Lease, DeadLetterDecision, list[Wake]]


def dead_letter_poison(deps: Deps, step: Step, row_id: UUID, actor: str) -> Poisoned | None:
    """Dead-letter a row if it reached the crash limit, before any code that could crash again."""
    ended = deps.database.run(lambda conn: _dead_letter_poison(conn, deps, step, row_id, actor))
    if ended is not None:
        failpoint("poison.after_record")
    return ended


def _dead_letter_poison(conn: Connection, deps: Deps, step: Step, row_id: UUID, actor: str) -> Poisoned | None:
    limit = deps.settings.constants.max_crashes
    lease = poison.lease(conn, step, row_id, leased_by=actor, max_crashes=limit)
    if lease is None:
        return None
    failpoint("poison.before_record")
    reason = f"{limit} workers died while processing this row"
    log.error("step.poison", crashes=limit)
    decision = DeadLetterDecision("POISON", "Poison", reason, retryable=True)
    return lease, decision, dead_letter_row(conn, deps, lease, step, decision, {})


def _settle_or_advance(
    conn: Connection, deps: Deps, job: Job | None, step: Step, decision: Retry | DeadLetterDecision, actor: str
) -> list[Wake]:
    if job is None:
        return []
    if isinstance(decision, Retry) or step in ("keep", "discard"):
        return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=actor)
    return fallback.advance(conn, job, decision, actor=actor)
