"""Run a sweep once per time slot and record its result."""

import math
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from psycopg.types.json import Jsonb

from db import ticks
from moorage import logs
from moorage.errors import DatabaseUnavailable, MoorageError, Transient
from moorage.failpoints import failpoint
from moorage.local_errors import find_local_failure
from moorage.settings import get_settings
from tasks import erasure
from tasks.step import Deps
from tasks.sweeps import dispatch, orphans, reconcile, retention
from worker import boot, dead_letter_queues, inspect_cluster, publish, schedule

log = logs.get_logger(__name__)

_claimed_at: Final[dict[str, float]] = {}  # when this process last ran a sweep
DRAIN_SHARE: Final = 0.7  # of its period, in which dispatch refills queues that drain; reconcile has the rest


def run_tick(name: str, actor: str) -> None:
    """Run the sweep of a message; with dispatch, reconcile where its period has passed: so beat sends a third less."""
    try:
        run_sweep(name, actor)
    finally:
        constants = get_settings().constants
        passed = time.monotonic() - _claimed_at.get("reconcile", -math.inf)
        if name == "dispatch" and passed > constants.reconcile_seconds - constants.dispatch_seconds / 2:
            run_sweep("reconcile", actor)


def run_sweep(name: str, actor: str) -> None:
    """Run a sweep if its current slot is not claimed yet; after a failure the next tick repeats it."""
    with logs.bind_fields(sweep=name):
        try:
            deps = boot.get_deps()
            period = schedule.slot_seconds(deps.settings, name)
            tick = ticks.claim_slot(deps.database, name, period)
            if tick is None:
                return
            _claimed_at[name] = time.monotonic()
            failpoint(f"{name}.after_tick")
            if not tick.due:
                return
            started = time.monotonic()
            result = _run(deps, name, actor, tick.due)
            result["seconds"] = round(time.monotonic() - started, 3)
            failpoint(f"{name}.before_finish")
            deps.database.run(lambda conn: ticks.record_result(conn, name, tick.slot, Jsonb(result)))
            failpoint(f"{name}.after_finish")
        except DatabaseUnavailable as error:
            log.warning("sweep.database_unavailable", error=str(error))
        except Transient as error:
            log.warning("sweep.interrupted", error=str(error))
        except MoorageError as error:
            log.error("sweep.refused", error=str(error))  # by storage: an operator must act, the next tick repeats it
        except Exception as error:
            failure = find_local_failure(error)
            if failure is None:
                raise
            log.warning("sweep.interrupted", error=str(failure))


def _run(deps: Deps, name: str, actor: str, due: Collection[str]) -> dict[str, Any]:
    depth, send, seconds = publish.read_queue_depth, publish.send_wakes, deps.settings.constants.dispatch_seconds
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "dispatch": lambda: dispatch.dispatch_due(deps, depth, send, due, seconds=DRAIN_SHARE * seconds),
        "reconcile": lambda: reconcile.reconcile(deps, actor, publish.publish_wakes, due),
        "drain": lambda: {**dead_letter_queues.drain_queues(deps, actor), **_count_consumers()},
        "discard": lambda: {**dispatch.dispatch_discards(deps, depth, send), **erasure.continue_erasures(deps, actor)},
        "counts": lambda: retention.count_ended_rows(deps),
        "orphans": lambda: orphans.sweep_orphans(deps),
        "retention": lambda: {**retention.delete_expired(deps, actor, seconds=retention.SECONDS)},
        "usage": lambda: retention.count_storage_use(deps),
    }
    return runs[name]()


def _count_consumers() -> dict[str, Any]:
    """Return the number of workers of each queue for /metrics; nothing while the broker is unavailable."""
    consumers = inspect_cluster.list_consumers()
    return {} if consumers is None else {"consumers": inspect_cluster.count_consumers(consumers)}
