"""Shared by all steps: dependencies, the lease guard and the final transaction."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar
from uuid import UUID

import requests

from db import jobs, leases, progress
from db.connection import CommitUncertain, Connection, Database
from media.limits import Limits
from moorage import logs, time_limit
from moorage.errors import DatabaseLocked, DatabaseUnavailable, MoorageError, StepInterrupted
from moorage.model import Job, Lease, Wake
from moorage.retry_policy import RetryPolicy
from moorage.settings import Settings
from providers.base import Provider
from storage.s3 import ObjectStore

T = TypeVar("T")
Work = Callable[[Connection], T]
SendWakes = Callable[[list[Wake]], int]  # returns how many the broker accepted
log = logs.get_logger(__name__)

LOCK_CHECK_MS: Final = 50
LOG_EVERY: Final = 60  # attempts to commit
CHECK_EVERY: Final = 10  # attempts to commit
CHECKS: Final = 3  # in a row, before a result is given up that exists nowhere else


class LeaseGuard(Protocol):
    """Reports whether the worker still holds its lease. Both methods raise LeaseLost or StepInterrupted."""

    provider_error: MoorageError | None  # of a request; the step recorded itself what follows from it

    def check(self) -> None:
        """Return if the step may continue."""

    def ensure_held(self) -> None:
        """Return once the lease is certainly held, waiting for PostgreSQL if needed. Call before external writes."""

    def hand_back_later(self, lease: Lease, error: StepInterrupted | DatabaseLocked) -> None:
        """Hand back a row, which another transaction has locked, as soon as possible, while later steps run."""


@dataclass(frozen=True, slots=True)
class Deps:
    settings: Settings
    database: Database
    storage: ObjectStore
    providers: Mapping[str, Provider]
    session: requests.Session
    limits: Limits
    policy: RetryPolicy
    noted: dict[str, float] = field(default_factory=dict)  # when this process recorded a success last, by target

    @property
    def asset_base(self) -> str:
        return self.storage.build_asset_url("").rstrip("/")


def build_retry_policy(settings: Settings) -> RetryPolicy:
    constants = settings.constants
    return RetryPolicy(
        max_errors=settings.max_errors,
        wait_base_seconds=constants.wait_base_seconds,
        wait_cap_seconds=constants.wait_cap_seconds,
        expired_source_seconds=constants.expired_source_seconds,
    )


def require_unlocked(deps: Deps, job_id: UUID) -> Job:
    """
    Lock and release a job and its project before a download or request; return the job.

    Raises DatabaseLocked: another transaction holds one of them, so that the result could not be recorded.
    """

    def lock(conn: Connection) -> Job:
        job = jobs.lock(conn, job_id)
        if job.project is not None:
            progress.lock_project(conn, job.project)
        return job

    return deps.database.run(lock, lock_ms=LOCK_CHECK_MS)


def run_unless_locked(deps: Deps, work: Work[T], **row: object) -> T | None:
    """Run a sweep's transaction on one row; return None if another one has locked it: a later run repeats it."""
    try:
        return deps.database.run(work, lock_ms=LOCK_CHECK_MS)
    except DatabaseLocked as error:
        log.warning("row.locked", error=str(error), **row)
        return None


@contextlib.contextmanager
def skip_after_error(event: str, row: T, locked: list[T] | None = None) -> Iterator[list[Exception]]:
    """Log the error of one row, and list it, so that others are processed; an unavailable PostgreSQL ends the sweep."""
    errors: list[Exception] = []
    try:
        yield errors
    except DatabaseUnavailable:
        raise
    except Exception as error:  # border: one row
        errors.append(error)
        is_known = isinstance(error, MoorageError)
        log.error(event, id=str(row), error=f"{type(error).__name__}: {error}", exc_info=not is_known)
        if isinstance(error, DatabaseLocked) and locked is not None:
            locked.append(row)


def commit_step(
    deps: Deps, lease: Lease, guard: LeaseGuard, work: Work[T], *, point: str = "", is_repeatable: bool = True
) -> T | None:
    """
    Run the transaction that ends a step; retry each second while PostgreSQL is unavailable, until the worker stops.

    After an error in COMMIT the row decides: if it still carries the token, the transaction did not commit. Otherwise
    it did, or another worker owns the row; then the result is None, and dispatch publishes the lost wakes again.

    Raises DatabaseUnavailable if this transaction fails although the row can be written: it is handed back.

    Args:
        is_repeatable: False if the result would be lost (that of a submission): locks are waited for as well, and the
            row must have been writable several times in a row.
    """
    is_uncertain, writable, attempts = False, 0, 0  # writable: how many checks in a row found that the row is
    with time_limit.suspend_limit():
        while True:
            try:
                if is_uncertain and not deps.database.run(lambda conn: leases.is_current(conn, lease)):
                    return None
                return deps.database.run(work, point=point)
            except DatabaseUnavailable as error:
                if writable >= (1 if is_repeatable else CHECKS):
                    raise  # no outage: this transaction alone fails, as by the time limit of its statements
                is_uncertain = is_uncertain or isinstance(error, CommitUncertain)
                if attempts % LOG_EVERY == 0:
                    log.warning("commit.retrying", error=str(error), uncertain=is_uncertain)
            except DatabaseLocked as error:
                if is_repeatable:
                    raise
                writable = 0
                if attempts % LOG_EVERY == 0:
                    log.warning("commit.locked", error=str(error))
            attempts += 1
            time.sleep(1.0)
            guard.check()
            if attempts % CHECK_EVERY == 0:
                writable = writable + 1 if not is_uncertain and _is_row_writable(deps, lease) else 0


def _is_row_writable(deps: Deps, lease: Lease) -> bool:
    try:
        return deps.database.run(lambda conn: leases.renew(conn, lease, lease_seconds=deps.settings.lease_seconds))
    except (DatabaseUnavailable, DatabaseLocked):
        return False
