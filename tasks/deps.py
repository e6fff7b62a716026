"""What every step is given: settings, connections and limits of one process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import requests

from db.connect import Database
from moorage.lifecycle import Policy
from moorage.settings import Settings
from providers.base import Provider
from storage.s3 import Blobs
from tasks.limits import Limits


class Pulse(Protocol):
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
    blobs: Blobs
    providers: Mapping[str, Provider]
    session: requests.Session
    limits: Limits
    policy: Policy

    @property
    def asset_base(self) -> str:
        """Return what stands before a key in `imageUrls` and answers."""
        return self.blobs.asset_url("").rstrip("/")


def policy_of(settings: Settings) -> Policy:
    """Return how long and how often to try, from the settings."""
    return Policy(
        max_errors=settings.max_errors,
        wait_base_seconds=settings.wait_base_seconds,
        wait_cap_seconds=settings.wait_cap_seconds,
    )
