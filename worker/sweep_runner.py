"""Runs a sweep once for its slot, with the broker and the tick row at hand."""

import time
from collections.abc import Callable
from typing import Any

from db import ticks
from moorage import logs
from moorage.errors import DatabaseUnavailable, MoorageError, Transient
from moorage.failpoints import failpoint
from moorage.model import Queue
from tasks.step import Deps
from tasks.sweeps import orphans, reconcile, retention
from worker import boot, dead_letter_queues, publish, schedule
from worker.celery import app

log = logs.get(__name__)


def run(name: str, actor: str) -> None:
    """Run a sweep if nobody has taken its present slot; whatever fails is left to the next tick."""
    deps = boot.deps()
    period = schedule.slot_seconds(deps.settings, name)
    with logs.bound(sweep=name):
        try:
            slot = deps.database.run(lambda conn: ticks.take(conn, name, period))
            if slot is None:
                return
            failpoint(f"{name}.after_tick")
            started = time.monotonic()
            result = _run(deps, name, actor)
            result["seconds"] = round(time.monotonic() - started, 3)
            failpoint(f"{name}.before_finish")
            deps.database.run(lambda conn: ticks.finish(conn, name, slot, result))
            failpoint(f"{name}.after_finish")
        except DatabaseUnavailable as error:
            log.warning("sweep.database_away", error=str(error))
        except Transient as error:
            log.warning("sweep.interrupted", error=str(error))
        except MoorageError as error:
            log.error("sweep.refused", error=str(error))  # storage says no: a person must act, the next tick tries


def _run(deps: Deps, name: str, actor: str) -> dict[str, Any]:
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "dispatch": lambda: reconcile.dispatch(deps, depth_of, publish.wake_all),
        "reconcile": lambda: reconcile.reconcile(deps, actor, publish.wake_all),
        "drain": lambda: dead_letter_queues.run(deps, actor),
        "discard": lambda: reconcile.discard(deps, depth_of, publish.wake_all),
        "orphans": lambda: orphans.sweep(deps),
        "retention": lambda: {**retention.run(deps, actor, seconds=retention.SECONDS)},
        "usage": lambda: retention.count_use(deps),
    }
    return runs[name]()


def depth_of(queue: Queue) -> int | None:
    """Return how many messages a queue holds; None when the broker is away."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            declared: Any = app.amqp.queues[queue](connection.default_channel).queue_declare()
            return int(declared.message_count)
    except publish.BROKER_AWAY as error:
        log.warning("broker.away", error=type(error).__name__)
        return None
