"""The lease heartbeat: a thread that renews the lease of a running step."""

import signal
import threading
import time
from types import TracebackType
from typing import Final, Self

from db import leases
from db.connection import BLOCKED_SIGNALS, Database
from moorage import errors, logs, time_limit
from moorage.model import Lease
from worker import shutdown

log = logs.get_logger(__name__)

HAND_BACK_LOCK_MS: Final = 8000  # below the limit of a statement: nearly always first in the queue for the lock


def join_hand_backs(**_: object) -> None:
    """Wait 5 s for rows that are still to be handed back, before the os._exit of a pool child, which counts a crash."""
    until = time.monotonic() + 5.0
    for thread in [each for each in threading.enumerate() if each.name == "heartbeat"]:
        thread.join(max(until - time.monotonic(), 0.0))


class RenewalFailed(errors.Transient):
    """A bug in the renewal: the step stops, and is repeated within the error limit."""


class Heartbeat:
    """
    Renew the leases of a step after each third of their duration; its LeaseGuard.

    They are lost when a renewal finds no row. After an error the renewal is retried each second, and `ensure_held`
    blocks external writes once the lease may have expired by the local clock. A renewal also restores an expired lease
    that was not claimed again. Short steps end before the first renewal and never open the second connection.
    """

    def __init__(self, url: str, *leases: Lease, lease_seconds: float, claimed_monotonic: float) -> None:
        self._database = Database(url, name="moorage-heartbeat")
        self._leases = leases
        self._lease_seconds = lease_seconds
        self._held_until = claimed_monotonic + lease_seconds
        self._lost = False
        self.provider_error: errors.MoorageError | None = None
        self._failure: errors.MoorageError | None = None  # why the lease is not renewed
        self._to_hand_back: list[tuple[Lease, errors.StepInterrupted | errors.DatabaseLocked]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError as error:  # too many processes
            self._failure = errors.ResourceExhausted(f"this machine: {error}")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        if not self._to_hand_back and self._thread.ident is not None:
            self._thread.join(timeout=5)

    def check(self) -> None:
        if self._lost:
            raise errors.LeaseLost(f"{self._leases[0].table} {self._leases[0].row_id}: the lease is lost")
        if self._failure is not None:
            raise self._failure
        if shutdown.is_grace_over():
            raise errors.StepInterrupted("the worker is stopping")

    def ensure_held(self) -> None:
        self.check()
        with time_limit.suspend_limit():
            while time.monotonic() >= self._held_until:
                time.sleep(0.2)
                self.check()

    def hand_back_later(self, lease: Lease, error: errors.StepInterrupted | errors.DatabaseLocked) -> None:
        self._to_hand_back.append((lease, error))

    def _run(self) -> None:
        # A signal delivered to this thread would be handled by the main thread, even inside its COMMIT.
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
        try:
            self._renew()
            for lease, error in self._to_hand_back:
                self._hand_back(lease, error)
        except Exception as error:  # border: the outermost line of a thread
            self._failure = RenewalFailed(f"the lease cannot be renewed: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
            log.error("lease.heartbeat_failed", exc_info=True, row_id=self._leases[0].row_id)
        finally:
            self._database.close()

    def _renew(self) -> None:
        wait = self._lease_seconds / 3
        while not self._done.wait(wait):
            started, wait = time.monotonic(), self._lease_seconds / 3
            try:
                is_renewed = self._database.run(
                    lambda conn: leases.renew(conn, *self._leases, lease_seconds=self._lease_seconds)
                )
            except (errors.DatabaseUnavailable, errors.DatabaseLocked) as error:
                log.warning("lease.renewal_failed", row_id=self._leases[0].row_id, error=str(error))
                wait = 1.0
                continue
            if not is_renewed:
                self._lost = True
                return
            self._held_until = started + self._lease_seconds

    def _hand_back(self, lease: Lease, error: errors.StepInterrupted | errors.DatabaseLocked) -> None:
        """Hand the row back under its own token, before the sweep releases it as a crash."""
        while not shutdown.is_grace_over():
            try:
                self._database.run(lambda conn: leases.hand_back(conn, lease, error), lock_ms=HAND_BACK_LOCK_MS)
            except errors.LeaseLost:
                return
            except (errors.DatabaseUnavailable, errors.DatabaseLocked):
                time.sleep(0.2)
            else:
                log.info("lease.returned", attempt=lease.attempt, row_id=lease.row_id)
                return
