"""The Celery tasks, and the signal handlers of the worker's main process."""

import gc
import os
from typing import Any, Final
from uuid import UUID

from billiard import pool
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Task, signals

from db import leases
from db.connection import Database
from moorage import logs, time_limit
from moorage import settings as settings_module
from moorage.errors import ConfigError, DatabaseLocked, DatabaseUnavailable
from moorage.model import Step, Wake
from worker import (
    boot,
    dead_letter_queues,
    lease_heartbeat,
    metrics_flush,
    outcomes,
    publish,
    queues,
    schedule,
    shutdown,
    step_runner,
    sweep_runner,
)
from worker.celery import app

log = logs.get_logger(__name__)


# A child that ends waits until its results are read. Celery's main process reads none during a stop if it has discarded
# the tasks that were sent last: at billiard's 30 s the stop would take as long.
pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 20  # times 0.1 s

REPORT_CHARS: Final = 4_000_000  # one outcome for each delivery of a second


def _leased_by(task: Any) -> str:
    return f"{task.request.hostname}/{task.request.id}"


def _dead_letter(task: Any, args: Any, kwargs: Any, why: str, queue: str) -> None:
    body = repr((args, kwargs)).encode()
    dead_letter_queues.dead_letter_message(
        boot.get_deps(), task.name, body, why=why, queue=queue, actor=_leased_by(task)
    )


def _define(step: Step) -> None:
    # The row decides the task's state: docs/decisions.md, "Flower shows the outcome of every row".
    @app.task(
        name=queues.TASK_BY_STEP[step],
        bind=True,
        throws=(outcomes.RowFailed,),
        Request="worker.outcomes:StepRequest",
        resultrepr_maxsize=REPORT_CHARS,
    )
    def run(self: Task[Any, Any], *args: Any, **kwargs: Any) -> outcomes.StepReport | None:
        try:
            (row_id,) = args
            wake = Wake(step, UUID(row_id))
        except (ValueError, TypeError, AttributeError):  # without this, Celery would only log it
            why = "has arguments that do not name a row"
            _dead_letter(self, args, kwargs, why, queues.QUEUE_BY_STEP[step])
            raise outcomes.RowFailed([outcomes.RowOutcome("", "", "dead", f"{step}: the message {why}")]) from None
        is_watched = self.request.get("is_watched", True)
        with time_limit.apply_limit(settings_module.get_settings().constants.step_seconds):
            try:
                ended = step_runner.run_step(wake.step, wake.row_id, _leased_by(self), is_watched=is_watched)
            finally:
                metrics_flush.schedule_flush()
        return outcomes.report(ended, wake.row_id) if is_watched else None


for _step in queues.TASK_BY_STEP:
    _define(_step)


@app.task(name=queues.SWEEP_TASK, bind=True, time_limit=queues.SWEEP_SECONDS, send_events=False)  # 90 a minute, idle
def sweep(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
    """Run a sweep if its current slot is free."""
    if kwargs or len(args) != 1 or args[0] not in schedule.SWEEPS:
        queue = str((self.request.delivery_info or {}).get("routing_key"))
        _dead_letter(self, args, kwargs, "has arguments that do not name a sweep", queue)
    else:
        sweep_runner.run_tick(args[0], _leased_by(self))


@signals.worker_init.connect
def _check(sender: Any, **_: object) -> None:
    try:
        boot.check_dependencies(sender.app.amqp.queues.consume_from)
    except ConfigError as error:
        raise SystemExit(f"moorage: {error}") from error
    processes = sender.concurrency if isinstance(sender.concurrency, int) else os.cpu_count() or 1
    step_runner.host_share = max(1, processes // 2)
    gc.collect()
    gc.freeze()  # the pool's processes share these objects: their garbage collection does not write to them


@signals.worker_process_init.connect
def _enable_time_limit(**_: object) -> None:
    time_limit.enable()


@signals.worker_shutting_down.connect
def _stop(**_: object) -> None:
    shutdown.begin_shutdown(settings_module.get_settings().stop_grace_seconds)


@signals.task_failure.connect
def _release_leases(sender: Any = None, task_id: str = "", exception: BaseException | None = None, **_: object) -> None:
    """
    Release the leases of a pool child that died, over a separate connection, and publish wakes for their rows.

    Of `task_failure`, in the worker's main process; other failures are ignored: their step recorded them.
    """
    if not isinstance(exception, WorkerLostError | TimeLimitExceeded):
        return
    leased_by = f"{sender.request.hostname or ''}/{task_id}"
    database = Database(settings_module.get_settings().database_url.get_secret_value(), name="moorage-release")
    try:
        rows = database.run(lambda conn: leases.release_held_by(conn, leased_by, f"its process died: {exception}"))
    except (DatabaseUnavailable, DatabaseLocked) as error:
        log.warning("lease.release_failed", by=leased_by, error=str(error))  # it expires
        return
    finally:
        database.close()
    log.warning("lease.released", by=leased_by, rows=len(rows), error=type(exception).__name__)
    publish.publish_wakes([Wake(leases.STEP_BY_TABLE[table], row_id) for table, row_id in rows])


signals.worker_process_shutdown.connect(lease_heartbeat.join_hand_backs)
signals.worker_process_shutdown.connect(metrics_flush.flush)
