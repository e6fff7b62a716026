"""Run one step: claim its row, renew the lease, catch and record failures, publish wakes."""

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from db import deliveries, leases, output_claims
from db.connection import Row
from db.reports.outcomes import read_outcomes
from moorage import errors, local_errors, logs, metrics, time_limit
from moorage.failpoints import failpoint
from moorage.model import Lease, Step, Wake
from moorage.retry_policy import DeadLetterDecision, Retry
from tasks import notifications
from tasks.outputs import discard, keep
from tasks.predictions import ingest, poll, submit
from tasks.step import Deps, LeaseGuard
from worker import boot, failures, publish, queues
from worker.lease_heartbeat import Heartbeat
from worker.outcomes import RowOutcome, StepResult, build_outcomes

log = logs.get_logger(__name__)

STEPS: Final[Mapping[Step, Callable[[Deps, Lease, LeaseGuard], list[Wake]]]] = {
    "ingest": ingest.run,
    "submit": submit.run,
    "generate": submit.run_generate,
    "poll": poll.run,
    "keep": keep.run,
    "discard": discard.run,
    "notify": notifications.run,
}
LEASE_LOST: Final = StepResult(text="its lease was lost: another worker has the row")
BATCH_SECONDS: Final = 1.0  # for which a task of step ingest works
# How many processes of this worker may download from one host while outputs of others are due; None outside a worker.
host_share: int | None = None


class UnexpectedError(errors.Transient):
    """A bug, here or in a library: retried within the error limit, then dead-lettered with its traceback."""


class FailureUnrecorded(UnexpectedError):
    """A bug in the recording of a failure, such as a fact that PostgreSQL cannot store. Counted, without its facts."""


@dataclass(slots=True)
class ClaimResult:
    """What a claim led to: wakes to publish, and each row with its result."""

    wakes: list[Wake]
    results: list[tuple[Lease, StepResult]]


def run_step(step: Step, row_id: UUID, leased_by: str, *, is_watched: bool = True) -> list[RowOutcome]:
    """
    Claim the row of a wake, run its step, and return the outcome of each row: of the named one alone, if it could not
    be claimed, as after a repeated wake.

    Step ingest claims further deliveries that are due, for a second; then it wakes another task for the rest.

    Args:
        is_watched: False if the outcomes are not shown; then the rows are not read again for them.
    """
    deps, outcomes, end = boot.get_deps(), list[RowOutcome](), time.monotonic() + BATCH_SECONDS
    with logs.bind_fields(step=step, row_id=str(row_id), by=leased_by):
        while True:
            started = time.monotonic()
            try:
                claim = _claim_and_run(deps, step, row_id, leased_by)
            except (errors.DatabaseUnavailable, errors.DatabaseLocked) as error:
                # Nothing is recorded: the row stays due, or its lease expires, and a sweep wakes it.
                is_locked = isinstance(error, errors.DatabaseLocked)
                log.warning("step.locked" if is_locked else "step.database_unavailable", error=str(error))
                return outcomes or [RowOutcome(str(row_id), "", "done", f"{step}: not claimed: {error}")]
            may_be_more = step == "ingest" and [lease.row_id for lease, _ in claim.results] not in ([], [row_id])
            is_over = time.monotonic() >= end
            if may_be_more and is_over:
                claim.wakes.append(Wake(step, row_id))
            if claim.wakes:
                publish.publish_wakes(claim.wakes)
            outcomes += _build_outcomes(deps, step, claim.results, time.monotonic() - started, is_watched=is_watched)
            if is_over or not may_be_more:
                return outcomes or [RowOutcome(str(row_id), "", "done", f"{step}: nothing to claim")]


def _build_outcomes(
    deps: Deps, step: Step, results: list[tuple[Lease, StepResult]], seconds: float, *, is_watched: bool
) -> list[RowOutcome]:
    """Read the rows again for what the steps recorded. They are committed: PostgreSQL may be unavailable by now."""
    rows: list[Row] = []
    if is_watched and results:
        with contextlib.suppress(errors.DatabaseUnavailable, errors.DatabaseLocked), time_limit.suspend_limit():
            rows = read_outcomes(deps.database, [lease for lease, _ in results])
    return build_outcomes(step, results, rows, waits_in=leases.WORK[step][1], seconds=seconds)


def _claim_and_run(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> ClaimResult:
    settings, claimed_at, seconds = deps.settings, time.monotonic(), deps.settings.lease_seconds
    failpoint(f"{step}.before_claim")
    with metrics.time_phase("claim"):
        leased, may_be_poison = _claim(deps, step, row_id, leased_by)
    claim = ClaimResult([], [])
    if leased:
        failpoint(f"{step}.after_claim")
        url, left = settings.database_url.get_secret_value(), leased
        with Heartbeat(url, *leased, lease_seconds=seconds, claimed_monotonic=claimed_at) as guard:
            if len(leased) > 1:
                claim.wakes, left = _run_batch(deps, leased)
                left_ids = {lease.row_id for lease in left}
                claim.results = [(lease, StepResult()) for lease in leased if lease.row_id not in left_ids]
            for lease in left:
                if len(left) > 1 and time.monotonic() >= claimed_at + BATCH_SECONDS:
                    result = _return_row(deps, lease, errors.DatabaseLocked("others of its batch took a second"), guard)
                    claim.results.append((lease, result))
                    continue
                trace = lease.delivery.traceparent if lease.delivery else None
                with logs.bind_fields(row_id=str(lease.row_id), **({"traceparent": trace} if trace else {})):
                    wakes, result = _run_claimed(deps, step, lease, guard)
                claim.wakes += wakes
                claim.results.append((lease, result))
    if may_be_poison:
        _end_poison(deps, step, row_id, leased_by, claim)
    for _, result in claim.results:
        metrics.ATTEMPTS.labels(step, _name_outcome(step, result), result.category).inc()
    return claim


def _end_poison(deps: Deps, step: Step, row_id: UUID, leased_by: str, claim: ClaimResult) -> None:
    """Add the end of the named row if it reached the crash limit; while its job is locked, leave it to a later wake."""
    try:
        poisoned = failures.dead_letter_poison(deps, step, row_id, leased_by)
    except (errors.DatabaseUnavailable, errors.DatabaseLocked) as error:
        if not claim.results:
            raise
        log.warning("step.poison_delayed", error=str(error))  # what other rows came to is still published
        return
    if poisoned:
        lease, decision, wakes = poisoned
        claim.wakes += wakes
        dead = StepResult("dead", f"{decision.category}: {decision.reason}", category=decision.category)
        claim.results.append((lease, dead))


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
    limit = deps.settings.constants.max_crashes
    who: dict[str, Any] = {"leased_by": leased_by, "lease_seconds": deps.settings.lease_seconds, "max_crashes": limit}
    if step == "keep":
        lease, is_poison = output_claims.claim(deps.database, row_id, **who, host_share=host_share)
        return [lease] if lease else [], is_poison
    if step == "ingest":
        leased = deliveries.claim_due(deps.database, row_id, **who, max_rows=queues.INGEST_ROWS)
        return leased, row_id not in {lease.row_id for lease in leased}
    if step in ("submit", "generate"):
        lease, is_poison = submit.claim(deps, step, row_id, **who)
        return [lease] if lease else [], is_poison
    lease = leases.claim(deps.database, step, row_id, **who)
    return [lease] if lease else [], lease is None


def _run_claimed(deps: Deps, step: Step, lease: Lease, guard: LeaseGuard) -> tuple[list[Wake], StepResult]:
    started = time.monotonic()
    try:
        wakes = STEPS[step](deps, lease, guard)
    except errors.LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt)
        return [], LEASE_LOST
    except errors.StepInterrupted as error:
        return [], _return_row(deps, lease, error, guard)
    except errors.MoorageError as error:
        return _record_failure(deps, lease, step, error, guard)
    except Exception as error:  # border: the step runner
        failure = local_errors.find_local_failure(error) or _describe_bug(error)
        log.error("step.unexpected", exc_info=True, error=str(failure))
        return _record_failure(deps, lease, step, failure, guard)
    answer = guard.provider_error
    facts = {"error": str(answer)} if answer else {}
    log.info("step.done", attempt=lease.attempt, seconds=round(time.monotonic() - started, 3), **facts)
    return wakes, StepResult(category=answer.category if answer else "", error=answer)


def _name_outcome(step: Step, result: StepResult) -> str:
    if result.state != "done" or not (result.text or result.error):
        return result.state
    if result.text or isinstance(result.error, errors.StepInterrupted):
        return "interrupted"
    return "dead" if step != "poll" and isinstance(result.error, errors.Permanent) else "retry"


def _describe_bug(error: Exception) -> UnexpectedError:
    return UnexpectedError(f"{type(error).__name__}: {error}", facts={"traceback": traceback.format_exc()[-4000:]})


def _return_row(
    deps: Deps, lease: Lease, error: errors.StepInterrupted | errors.DatabaseLocked, guard: LeaseGuard
) -> StepResult:
    try:
        deps.database.run(lambda conn: leases.hand_back(conn, lease, error))
    except errors.LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt, error=str(error))
        return LEASE_LOST
    except (errors.DatabaseUnavailable, errors.DatabaseLocked):
        guard.hand_back_later(lease, error)
        log.warning("lease.return_delayed", attempt=lease.attempt, error=str(error))
        return StepResult(text=f"to be handed back, else its lease expires: {error}")
    log.info("lease.returned", attempt=lease.attempt)
    return StepResult(text=f"handed back, the attempt is not counted: {error}")


def _record_failure(
    deps: Deps, lease: Lease, step: Step, error: errors.MoorageError, guard: LeaseGuard
) -> tuple[list[Wake], StepResult]:
    try:
        decision, wakes = failures.record_failure(deps, lease, step, error, guard)
    except errors.LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt, error=str(error))
        return [], LEASE_LOST
    except errors.DatabaseLocked as locked:  # the row cannot end, because its job is locked
        return [], _return_row(deps, lease, locked, guard)
    except (errors.StepInterrupted, errors.Transient) as stopped:  # while PostgreSQL was unavailable: the lease expires
        log.warning("lease.not_returned", attempt=lease.attempt, error=str(stopped))
        return [], StepResult(text=f"its failure is not recorded, its lease expires: {stopped}")
    except Exception as bug:  # border: the step runner
        log.error("step.failure_not_recorded", exc_info=True)
        if isinstance(error, FailureUnrecorded):
            # Its lease expires, which counts a crash: the row ends as POISON.
            return [], StepResult(text=f"its failure is not recorded, its lease expires: {error}")
        unrecorded = FailureUnrecorded(f"its failure could not be recorded: {type(bug).__name__}")
        return _record_failure(deps, lease, step, unrecorded, guard)
    return wakes, _report_decision(lease, decision, error)


def _report_decision(
    lease: Lease, decision: Retry | DeadLetterDecision | None, error: errors.MoorageError
) -> StepResult:
    """Log what was recorded. After an uncertain commit that took place the row alone knows it."""
    if decision is None:
        return StepResult()
    facts = {"attempt": lease.attempt, "error": type(error).__name__, "reason": decision.reason}
    text = f"{error.category}: {decision.reason}"
    if isinstance(decision, Retry):
        log.warning("step.retry", run_at=decision.run_at.isoformat(), **facts)
        return StepResult("retry", text, decision.run_at, error.category)
    log.error("step.dead_letter", category=decision.category, **facts)
    return StepResult("dead", text, category=error.category)
