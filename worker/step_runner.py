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
from worker import boot, failures, publish
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


class UnexpectedError(Transient):
    """A bug, here or in a library: retried within the error limit, then dead-lettered with its traceback."""


class FailureUnrecorded(UnexpectedError):
    """A bug in the recording of a failure, such as a fact that PostgreSQL cannot store. Counted, without its facts."""


def run_step(step: Step, row_id: UUID, leased_by: str) -> None:
    """Claim the row of a wake and run its step. Finding nothing to claim is normal: wakes may be duplicated."""
    deps = boot.get_deps()
    with logs.bind_fields(step=step, row_id=str(row_id), by=leased_by):
        try:
            wakes = _claim_and_run(deps, step, row_id, leased_by)
        except DatabaseUnavailable as error:
            # Nothing is recorded: the row stays due, or its lease expires, and a sweep wakes it.
            log.warning("step.database_unavailable", error=str(error))
            return
        except DatabaseLocked as error:  # nothing is recorded, as above
            log.warning("step.locked", error=str(error))
            return
        if wakes:
            publish.publish_wakes(wakes)


def _claim_and_run(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> list[Wake]:
    spec, settings = STEPS[step], deps.settings
    claimed_at = time.monotonic()
    failpoint(f"{step}.before_claim")
    lease, is_poison = _claim(deps, step, row_id, leased_by)
    wakes: list[Wake] = []
    if lease is not None:
        failpoint(f"{step}.after_claim")
        url, seconds = settings.database_url.get_secret_value(), settings.lease_seconds
        with (
            logs.bind_fields(row_id=str(lease.row_id)),
            Heartbeat(url, lease, lease_seconds=seconds, claimed_monotonic=claimed_at) as guard,
        ):
            wakes = _run_claimed(deps, spec, step, lease, guard)
    if is_poison:
        log.error("step.poison", crashes=settings.constants.max_crashes)
        wakes += failures.dead_letter_poison(deps, spec.table, step, row_id, leased_by)
    return wakes


def _claim(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> tuple[Lease | None, bool]:
    """Return the lease, if there is one, and True if the named row is due but reached the crash limit."""
    spec, limit = STEPS[step], deps.settings.constants.max_crashes
    who: dict[str, Any] = {"leased_by": leased_by, "lease_seconds": deps.settings.lease_seconds}
    if step == "keep":
        return output_claims.claim(deps.database, row_id, **who, max_crashes=limit)
    lease = leases.claim(deps.database, spec.table, row_id, states=spec.states, **who, max_crashes=limit)
    if lease is not None:
        return lease, False
    return None, deps.database.run(
        lambda conn: leases.is_poison(conn, spec.table, row_id, states=spec.states, max_crashes=limit)
    )


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
        guard.hand_back_later(error)
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
