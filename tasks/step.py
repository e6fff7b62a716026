"""What every step is given: settings, connections and limits of one process."""

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
from moorage.lifecycle import RetryPolicy
from moorage.model import Lease
from moorage.settings import Settings
from providers.base import Provider
from storage.s3 import ObjectStore

T = TypeVar("T")
log = logs.get_logger(__name__)

COMMIT_RETRY_SECONDS: Final = 420.0  # below Celery's hard limit of 600 s, less a download


class LeaseGuard(Protocol):
    """The life of a lease as a step sees it."""

    def __call__(self) -> None:
        """Return if the work may go on. Raises LeaseLost or HandBack."""

    def before_write(self) -> None:
        """Return once the lease is certainly ours, waiting while PostgreSQL is away. Raises LeaseLost or HandBack."""


@dataclass(frozen=True, slots=True)
class Deps:
    """One process's way to the outside."""

    settings: Settings
    database: Database
    storage: ObjectStore
    providers: Mapping[str, Provider]
    session: requests.Session
    limits: Limits
    policy: RetryPolicy

    @property
    def asset_base(self) -> str:
        """Return what stands before a key in `imageUrls` and answers."""
        return self.storage.build_asset_url("").rstrip("/")


def build_retry_policy(settings: Settings) -> RetryPolicy:
    """Return how long and how often to try, from the settings."""
    return RetryPolicy(
        max_errors=settings.max_errors,
        wait_base_seconds=settings.constants.wait_base_seconds,
        wait_cap_seconds=settings.constants.wait_cap_seconds,
    )


def commit_step(deps: Deps, lease: Lease, pulse: LeaseGuard, work: Callable[[Connection], T]) -> T | None:
    """
    Run the transaction that ends a step, while PostgreSQL is away again each second.

    After an error in COMMIT the row decides: token still there means it did not happen, gone means it did (or that
    another worker owns the row: then there is nothing to write either). None is returned then: the wakes are lost, and
    dispatch sends them again.

    Raises:
        LeaseLost: the row carries another token.
        HandBack: the worker stops.
        DatabaseUnavailable: PostgreSQL stayed away for seven minutes.
    """
    give_up_at = time.monotonic() + COMMIT_RETRY_SECONDS
    uncertain = False
    while True:
        try:
            if uncertain and not deps.database.run(lambda conn: leases.is_current(conn, lease)):
                return None
            return deps.database.run(work)
        except DatabaseUnavailable as error:
            uncertain = uncertain or isinstance(error, CommitUncertain)
            log.warning("writeback.waiting", error=str(error), uncertain=uncertain)
            if time.monotonic() > give_up_at:
                raise
        time.sleep(1.0)
        pulse()
