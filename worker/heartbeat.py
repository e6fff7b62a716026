"""A lease's life while a step works: a thread renews it, the step asks whether it still holds."""

import signal
import threading
import time
from types import TracebackType
from typing import Self

from db import leases
from db.connection import BLOCKED_SIGNALS, Database
from moorage import logs
from moorage.errors import DatabaseUnavailable, LeaseLost, StepInterrupted
from moorage.model import Lease
from worker import shutdown

log = logs.get_logger(__name__)


class Heartbeat:
    """
    Renews a lease every third of its life; calling it is a step's question "may I go on?".

    No row at a renewal means lost. An error does not: it is tried each second, and `before_write` holds a step back
    from the outside world once the lease may have ended by our clock. A renewal revives an expired lease that nobody
    took. Short work ends before the first renewal and never opens the second connection.
    """

    def __init__(self, url: str, lease: Lease, *, lease_seconds: float, claimed_monotonic: float) -> None:
        self._database = Database(url, name="moorage-heartbeat")
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._sure_until = claimed_monotonic + lease_seconds
        self._lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def __call__(self) -> None:
        """Return if the work may go on. Raises LeaseLost or HandBack."""
        if self._lost:
            raise LeaseLost(f"{self._lease.table} {self._lease.row_id}: the lease is lost")
        if shutdown.is_grace_over():
            raise StepInterrupted("the worker is stopping")

    def before_write(self) -> None:
        """Return once the lease is certainly ours, waiting while PostgreSQL is away. Raises LeaseLost or HandBack."""
        self()
        while time.monotonic() >= self._sure_until:
            time.sleep(0.2)
            self()

    def _run(self) -> None:
        # A signal that lands on this thread would be handled by the main one, also inside its COMMIT.
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
        try:
            self._renew()
        except Exception:  # border: the outermost line of a thread
            self._lost = True  # nobody renews it any more: the step must stop, not wait for a renewal
            log.error("lease.renewal_broken", exc_info=True, row_id=self._lease.row_id)
        finally:
            self._database.close()

    def _renew(self) -> None:
        wait = self._lease_seconds / 3
        while not self._done.wait(wait):
            asked = time.monotonic()
            try:
                alive = self._database.run(
                    lambda conn: leases.renew(conn, self._lease, lease_seconds=self._lease_seconds)
                )
            except DatabaseUnavailable as error:
                log.warning("lease.renewal_failed", row_id=self._lease.row_id, error=str(error))
                wait = 1.0
                continue
            if not alive:
                self._lost = True
                return
            self._sure_until = asked + self._lease_seconds
            wait = self._lease_seconds / 3
