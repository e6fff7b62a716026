"""The shell round every step: claims the row, binds the log, renews the lease, catches, records, wakes."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from db import deliveries, leases, predictions, submissions
from moorage import logs
from moorage.errors import DatabaseUnavailable, LeaseLost, MoorageError, StepInterrupted, Transient
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision, Retry
from moorage.model import Lease, Step, Wake, WorkTable
from tasks import notifications
from tasks.outputs import discard, keep
from tasks.predictions import ingest, poll, submit
from tasks.step import Deps, LeaseGuard
from worker import boot, failures, publish
from worker.heartbeat import Heartbeat

log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StepSpec:
    """Where a step's rows are, in which states it takes them, and what it does."""

    table: WorkTable
    states: tuple[str, ...]
    work: Callable[[Deps, Lease, LeaseGuard], list[Wake]]


STEPS: Final[Mapping[Step, StepSpec]] = {
    "ingest": StepSpec("deliveries", deliveries.LIVE_STATES, ingest.run),
    "submit": StepSpec("predictions", submissions.SUBMIT_STATES, submit.run),
    "generate": StepSpec("predictions", submissions.SUBMIT_STATES, submit.run_generate),
    "poll": StepSpec("predictions", predictions.POLLED_STATES, poll.run),
    "keep": StepSpec("outputs", ("waiting",), keep.run),
    "discard": StepSpec("outputs", ("discarding",), discard.run),
    "notify": StepSpec("notices", ("waiting",), notifications.run),
}


# A step that PostgreSQL failed within this time is handed back as soon as it answers; write_back waits up to 420 s and
# Celery's hard limit is 600 s.
MAX_RECORDABLE_SECONDS: Final = 150.0


class Unexpected(Transient):
    """A bug, or a library's surprise: tried again within the error limit, then a dead letter with its traceback."""


def run_step(step: Step, row_id: UUID, leased_by: str) -> None:
    """Take one wake: claim the row and carry the step out. An empty claim is normal: wakes come doubled."""
    deps = boot.get_deps()
    with logs.bind_fields(step=step, row_id=str(row_id), by=leased_by):
        try:
            wakes = _run(deps, step, row_id, leased_by)
        except DatabaseUnavailable as error:
            # Nothing is recorded: the row stays due, or its lease ends, and a sweep finds it.
            log.warning("step.database_away", error=str(error))
            return
        if wakes:
            publish.publish_wakes(wakes)


def _run(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> list[Wake]:
    spec, settings = STEPS[step], deps.settings
    asked = time.monotonic()
    failpoint(f"{step}.before_claim")
    lease = deps.database.run(
        lambda conn: leases.claim(
            conn,
            spec.table,
            row_id,
            states=spec.states,
            leased_by=leased_by,
            lease_seconds=settings.lease_seconds,
            max_crashes=settings.constants.max_crashes,
        )
    )
    if lease is None:
        return _unclaimed(deps, step, row_id, leased_by)
    failpoint(f"{step}.after_claim")
    url = settings.database_url.get_secret_value()
    with Heartbeat(url, lease, lease_seconds=settings.lease_seconds, claimed_monotonic=asked) as pulse:
        return _carry_out(deps, spec, step, lease, pulse)


def _unclaimed(deps: Deps, step: Step, row_id: UUID, leased_by: str) -> list[Wake]:
    spec, limit = STEPS[step], deps.settings.constants.max_crashes
    is_poison = deps.database.run(
        lambda conn: leases.is_poison(conn, spec.table, row_id, states=spec.states, max_crashes=limit)
    )
    if not is_poison:
        return []
    log.error("step.poison", crashes=limit)
    return failures.dead_letter_poison(deps, step, row_id, leased_by)


def _carry_out(deps: Deps, spec: StepSpec, step: Step, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    started = time.monotonic()
    try:
        wakes = spec.work(deps, lease, pulse)
    except LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt)
        return []
    except StepInterrupted as error:
        _hand_back(deps, lease, str(error))
        return []
    except DatabaseUnavailable as error:
        if time.monotonic() - started > MAX_RECORDABLE_SECONDS:
            raise  # there is no time left to wait for PostgreSQL once more
        return _failed(deps, lease, step, error, pulse)  # not counted, and no crash either
    except MoorageError as error:
        return _failed(deps, lease, step, error, pulse)
    except Exception as error:  # border: the shell round a step
        facts = {"traceback": traceback.format_exc()[-4000:]}
        unexpected = Unexpected(f"{type(error).__name__}: {error}", facts=facts)
        log.error("step.unexpected", exc_info=True)
        return _failed(deps, lease, step, unexpected, pulse)
    log.info("step.done", attempt=lease.attempt, seconds=round(time.monotonic() - started, 3))
    return wakes


def _hand_back(deps: Deps, lease: Lease, reason: str) -> None:
    try:
        deps.database.run(
            lambda conn: leases.reschedule(conn, lease, wait_seconds=0, reason=reason, counts_as_error=False)
        )
    except LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt, error=reason)
    else:
        log.info("lease.handed_back", attempt=lease.attempt)


def _failed(deps: Deps, lease: Lease, step: Step, error: MoorageError, pulse: LeaseGuard) -> list[Wake]:
    try:
        verdict, wakes = failures.record_failure(deps, lease, step, error, pulse)
    except LeaseLost:
        log.warning("lease.lost", attempt=lease.attempt, error=str(error))
        return []
    except StepInterrupted:
        return []  # the database was away while the worker stopped: the lease ends by itself
    _log_failure(verdict, lease, error)
    return wakes


def _log_failure(verdict: Retry | DeadLetterDecision | None, lease: Lease, error: MoorageError) -> None:
    name, reason = type(error).__name__, str(error)
    if isinstance(verdict, Retry):
        log.warning("step.retry", attempt=lease.attempt, run_at=verdict.run_at.isoformat(), error=name, reason=reason)
    elif isinstance(verdict, DeadLetterDecision):
        log.error("step.dead_letter", attempt=lease.attempt, category=verdict.category, error=name, reason=reason)
