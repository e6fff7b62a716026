"""
Extensions of Celery's worker: fast detection of dead pool children, and the liveness file.

Celery 5.7 checks for dead children when a child's pipe breaks, and otherwise every five seconds. The kernel closes the
pipe just before the child can be reaped: on a busy machine about every second check is too early, and the child's row
was released up to five seconds late (measured: 4.5 s instead of 0.05 s).
"""

from pathlib import Path
from typing import Any, Final

from celery import bootsteps

from moorage import logs

log = logs.get_logger(__name__)

REAP_INTERVAL_SECONDS: Final = 0.25
liveness_file: str | None = None  # MOORAGE_ALIVE_FILE, set with the application


class ChildReaper(bootsteps.StartStopStep):
    """Checks for dead children four times a second; each check is one system call per child."""

    requires = ("celery.worker.components:Pool",)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Start the timer; called at the start and after each broker loss, which cancels earlier timers."""
        pool = getattr(worker.pool, "_pool", None)
        if pool is not None and hasattr(pool, "maintain_pool"):  # a process pool: threads do not die alone
            hub.call_repeatedly(REAP_INTERVAL_SECONDS, pool.maintain_pool)


def touch_liveness_file(**_: object) -> Any:
    """Touch the file, if there is one; return True, for loops. Only the main thread does, which may hang."""
    try:
        if liveness_file:
            Path(liveness_file).touch()
    except OSError as error:  # no reason to end: the probe fails
        log.warning("liveness_file.not_touched", path=liveness_file, error=str(error))
    return True
