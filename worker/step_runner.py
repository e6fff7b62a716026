"""Run one step: claim its row, renew the lease, catch and record failures, publish wakes."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from db import deliveries, leases, output_claims, predictions, submissions
from moorage import local_errors, logs
from moorage.errors import DatabaseLocked, DatabaseUnavailable, LeaseLost, MoorageError, StepInterrupted, Transient
from moorage.failpoints import failpoint
from moorage.model import Lease, Step, Wake, WorkTable
from moorage.retry_policy import DeadLetterDecision, Retry
from tasks import notifications
from tasks.outputs import discard, keep
from tasks.predictions import ingest, poll, submit
from tasks.step import Deps, LeaseGuard
from worker import boot, failures, publish, queues
from worker.heartbeat import Heartbeat

log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StepSpec:
    table: WorkTable
    states: tuple[str, ...]
    run: Callable[[Deps, Lease, LeaseGuard], list[Wake]]


STEPS: Final[Mapping[Step, StepSpec]] = {
    "ingest": StepSpec("deliveries", deliveries.LIVE_STATES, ingest.run),
    "submit": StepSpec("predictions", submissions.SUBMIT_STATES, submit.run),
    "generate": StepSpec("predictions", submissions.SUBMIT_STATES, submit.run_generate),
    "poll": StepSpec("predictions", predictions.POLLED_STATES, poll.run),
    "keep": StepSpec("outputs", ("waiting",), keep.run),
    "discard": StepSpec("outputs", ("discarding",), discard.run),
    "notify": StepSpec("notifications", ("waiting",), notifications.run),
}


BATCH_SECONDS: Final = 1.0  # for which a task of step ingest works


class UnexpectedError(Transient):
    """A bug, here or in a library: retried within the error limit, then dead-lettered with its traceback."""


class FailureUnrecorded(UnexpectedError):
    """A bug in the recording of a failure, such as a fact that PostgreSQL cannot store. Counted, without its facts."""


def run_step(step: Step, row_id: UUID, leased_by: str) -> int:
    """
    Claim the row of a wake, run its step, and return how many rows were claimed: none, if the wake was a repeated one.

    Step ingest claims further deliveries that are due, for a second; then it wakes another task for the rest.
    """
    deps, total, end = boot.get_deps(), 0, time.monotonic() + BATCH_SECONDS
    with logs.bind_fields(step=step, row_id=str(row_id), by=leased_by):
        while True:
            try:
                wakes, leased = _claim_and_run(deps, step, row_id, leased_by)
            except (DatabaseUnavailable, DatabaseLocked) as error:
                # Nothing is recorded: the row stays due, or its lease expires, and a sweep wakes it.
                is_locked = isinstance(error, DatabaseLocked)
                log.warning("step.locked" if is_locked else "step.database_unavailable", error=str(error))
                return total
            total += len(leased)
            may_be_more = step == "ingest" and [lease.row_id for lease in leased] not in ([], [row_id])
            is_over = time.monotonic() >= end
            if may_be_more and is_over:
                wakes.append(Wake(step, row_id))
            if wakes:
                publish.publish_wakes(wakes)
            if is_over or not may_be_more:
                return total


def _claim_and_run(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> tuple[list[Wake], list[Lease]]:
    """Return wakes, and what was claimed."""
    spec, settings = STEPS[step], deps.settings
    claimed_at, seconds = time.monotonic(), settings.lease_seconds
    failpoint(f"{step}.before_claim")
    leased, may_be_poison = _claim(deps, step, row_id, leased_by)
    wakes: list[Wake] = []
    if leased:
        failpoint(f"{step}.after_claim")
        url, left = settings.database_url.get_secret_value(), leased
        with Heartbeat(url, *leased, lease_seconds=seconds, claimed_monotonic=claimed_at) as guard:
            if len(leased) > 1:
                wakes, left = _run_batch(deps, leased)
            for lease in left:
                if len(left) > 1 and time.monotonic() >= claimed_at + BATCH_SECONDS:
                    _return_row(deps, lease, DatabaseLocked("others of its batch took a second"), guard)
                    continue
                with logs.bind_fields(row_id=str(lease.row_id)):
                    wakes += _run_claimed(deps, spec, step, lease, guard)
    if may_be_poison:
        wakes += failures.dead_letter_poison(deps, step, row_id, leased_by)
    return wakes, leased


def _run_batch(deps: Deps, leased: list[Lease]) -> tuple[list[Wake], list[Lease]]:
    """Apply deliveries together; return wakes, and the leases to run alone: all, if one of them raised an error."""
    try:
        wakes, left = ingest.run_batch(deps, leased)
    except Exception:  # border: the step runner
        log.warning("batch.failed", exc_info=True, rows=len(leased))
        return [], leased
    log.info("batch.done", rows=len(leased), left=len(left))
    return wakes, left


def _claim(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> tuple[list[Lease], bool]:
    """Return the leases, and True if the named row may have reached the crash limit."""
    spec, limit = STEPS[step], deps.settings.constants.max_crashes
    who: dict[str, Any] = {"leased_by": leased_by, "lease_seconds": deps.settings.lease_seconds, "max_crashes": limit}
    if step == "keep":
        lease, is_poison = output_claims.claim(deps.database, row_id, **who)
        return [lease] if lease else [], is_poison
    if step == "ingest":
        leased = deliveries.claim_due(deps.database, row_id, **who, max_rows=queues.INGEST_ROWS)
        return leased, not leased
    if step in ("submit", "generate"):
        lease, is_poison = submit.claim(deps, step, row_id, **who)
        return [lease] if lease else [], is_poison
    lease = leases.claim(deps.database, spec.table, row_id, states=spec.states, **who)
    return [lease] if lease else [], lease is None


def _run_claimed(deps: Deps, spec: StepSpec, step: Step, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    started = time.monotonic()
    try:
        wakes = spec.run(deps, lease, guard)
    except LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt)
        return []
    except StepInterrupted as error:
        _return_row(deps, lease, error, guard)
        return []
    except MoorageError as error:
        return _record_failure(deps, lease, step, error, guard)
    except Exception as error:  # border: the step runner
        failure = local_errors.find_local_failure(error) or _describe_bug(error)
        log.error("step.unexpected", exc_info=True, error=str(failure))
        return _record_failure(deps, lease, step, failure, guard)
    log.info("step.done", attempt=lease.attempt, seconds=round(time.monotonic() - started, 3))
    return wakes


def _describe_bug(error: Exception) -> UnexpectedError:
    return UnexpectedError(f"{type(error).__name__}: {error}", facts={"traceback": traceback.format_exc()[-4000:]})


def _return_row(deps: Deps, lease: Lease, error: StepInterrupted | DatabaseLocked, guard: LeaseGuard) -> None:
    try:
        deps.database.run(lambda conn: leases.hand_back(conn, lease, error))
    except LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt, error=str(error))
    except DatabaseLocked:
        guard.hand_back_later(lease, error)
        log.warning("lease.return_delayed", attempt=lease.attempt, error=str(error))
    else:
        log.info("lease.returned", attempt=lease.attempt)


def _record_failure(deps: Deps, lease: Lease, step: Step, error: MoorageError, guard: LeaseGuard) -> list[Wake]:
    try:
        decision, wakes = failures.record_failure(deps, lease, step, error, guard)
    except LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt, error=str(error))
        return []
    except DatabaseLocked as locked:  # the row cannot end, because its job is locked
        _return_row(deps, lease, locked, guard)
        return []
    except (StepInterrupted, Transient) as stopped:  # while PostgreSQL was unavailable: the lease expires
        log.warning("lease.not_returned", attempt=lease.attempt, error=str(stopped))
        return []
    except Exception as bug:  # border: the step runner
        log.error("step.failure_not_recorded", exc_info=True)
        if isinstance(error, FailureUnrecorded):
            raise  # the lease expires, which counts a crash: the row ends as POISON
        unrecorded = FailureUnrecorded(f"its failure could not be recorded: {type(bug).__name__}")
        return _record_failure(deps, lease, step, unrecorded, guard)
    _log_decision(lease, decision, error)
    return wakes


def _log_decision(lease: Lease, decision: Retry | DeadLetterDecision | None, error: MoorageError) -> None:
    name = type(error).__name__
    if isinstance(decision, Retry):
        run_at, reason = decision.run_at.isoformat(), decision.reason
        log.warning("step.retry", attempt=lease.attempt, run_at=run_at, error=name, reason=reason)
    elif isinstance(decision, DeadLetterDecision):
        category, reason = decision.category, decision.reason
        log.error("step.dead_letter", attempt=lease.attempt, category=category, error=name, reason=reason)
