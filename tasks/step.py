"""Shared by all steps: dependencies, the lease guard and the final transaction."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import requests

from db import leases
from db.connection import CommitUncertain, Connection, Database
from media.limits import Limits
from moorage import logs
from moorage.errors import DatabaseUnavailable
from moorage.model import Lease, Wake
from moorage.retry_policy import RetryPolicy
from moorage.settings import Settings
from providers.base import Provider
from storage.s3 import ObjectStore

T = TypeVar("T")
SendWakes = Callable[[list[Wake]], int]  # returns how many the broker accepted
log = logs.get_logger(__name__)

COMMIT_RETRY_SECONDS: Final = 420.0  # below Celery's hard limit of 600 s, less a download


class LeaseGuard(Protocol):
    """Reports whether the worker still holds its lease. Both methods raise LeaseLost or StepInterrupted."""

    def check(self) -> None:
        """Return if the step may continue."""

    def ensure_held(self) -> None:
        """Return once the lease is certainly held, waiting for PostgreSQL if needed. Call before external writes."""


@dataclass(frozen=True, slots=True)
class Deps:
    settings: Settings
    database: Database
    storage: ObjectStore
    providers: Mapping[str, Provider]
    session: requests.Session
    limits: Limits
    policy: RetryPolicy

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


def commit_step(deps: Deps, lease: Lease, guard: LeaseGuard, work: Callable[[Connection], T]) -> T | None:
    """
    Run the transaction that ends a step; retry each second while PostgreSQL is unavailable, for seven minutes.

    After an error in COMMIT the row decides: if it still carries the token, the transaction did not commit. Otherwise
    it did, or another worker owns the row; then the result is None, and dispatch publishes the lost wakes again.
    """
    give_up_at = time.monotonic() + COMMIT_RETRY_SECONDS
    is_uncertain = False
    while True:
        try:
            if is_uncertain and not deps.database.run(lambda conn: leases.is_current(conn, lease)):
                return None
            return deps.database.run(work)
        except DatabaseUnavailable as error:
            is_uncertain = is_uncertain or isinstance(error, CommitUncertain)
            log.warning("commit.retrying", error=str(error), uncertain=is_uncertain)
            if time.monotonic() > give_up_at:
                raise
        time.sleep(1.0)
        guard.check()
