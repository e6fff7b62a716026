"""Beat's scheduler: a tick that the broker does not accept is one line in the log, and a signal always ends it."""

import signal
import time
from datetime import UTC, datetime
from typing import Any

from celery import beat, signals
from celery.schedules import schedule

from moorage import logs
from worker import bootsteps
from worker.broker_errors import explain
from worker.schedule import SWEEPS

log = logs.get_logger(__name__)


@signals.beat_init.connect
def handle_signals(sender: Any, **_: object) -> None:
    """Replace Celery's handlers, which close the connection that they interrupt: its error replaced the exit."""

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        sender._is_shutdown.set()  # the exit may be lost in a callback of the garbage collector
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("beat.ready", sweeps=",".join(SWEEPS))


class Scheduler(beat.Scheduler):
    """Celery's scheduler without a schedule file; Celery 5.7 logs two hundred lines for each tick that fails."""

    _clock_offset = 0.0  # between the clock, which can be set, and the monotonic one, at the last tick

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Rebuild the schedule if the clock was set back: Celery would send nothing until it has caught up."""
        offset = self.app.now().timestamp() - time.monotonic()
        if (seconds := self._clock_offset - offset) > 2.0:  # less delays ticks by less
            log.warning("beat.clock_set_back", seconds=round(seconds))
            self.schedule.clear()
            self.setup_schedule()
            self._heap = None
        self._clock_offset = offset
        return super().tick(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Make every periodic sweep due at once: after a restart, one with a long period would count as late."""
        super().setup_schedule()
        for entry in self.schedule.values():
            if isinstance(entry.schedule, schedule):
                entry.last_run_at = datetime.fromtimestamp(0, UTC)

    def adjust(self, n: Any, drift: float = 0.0) -> Any:
        """Wait until a tick is due. Celery ends the wait 10 ms before, and asks without a pause until it is."""
        return n + drift if n else n

    def _ensure_connected(self) -> Any:
        def log_error(error: Exception, seconds: float) -> None:
            log.error("broker.unavailable", **explain(error)._asdict(), retry_s=seconds)

        return self.connection.ensure_connection(log_error, callback=bootsteps.touch_liveness_file)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one tick. The next one repeats what was not sent."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except beat.SchedulingError as error:
            bootsteps.touch_liveness_file()
            log.warning("beat.tick_not_sent", sweep=entry.args[0], what=explain(error).what)
