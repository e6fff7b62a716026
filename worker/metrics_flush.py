"""Adds what this pool child has counted to the totals in PostgreSQL, which every receiver's /metrics shows."""

import signal
import threading
import time
from typing import Final

from db import work_totals
from db.connection import BLOCKED_SIGNALS, CommitUncertain, Database
from moorage import logs, metrics
from moorage import settings as settings_module
from moorage.errors import DatabaseLocked, DatabaseUnavailable

log = logs.get_logger(__name__)

FLUSH_SECONDS: Final = 5.0
_lock = threading.Lock()
_sent: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # values of this process that are in the totals
_is_scheduled = False


def schedule_flush() -> None:
    """Add the counts in FLUSH_SECONDS, by a thread, as the next task may come in an hour. A killed child loses them."""
    global _is_scheduled
    if not _is_scheduled:
        _is_scheduled = True
        try:
            threading.Thread(target=_flush_later, name="work-metrics", daemon=True).start()
        except RuntimeError as error:  # too many processes: the next task tries again
            _is_scheduled = False
            log.warning("metrics_flush.not_scheduled", error=str(error))


def _flush_later() -> None:
    global _is_scheduled
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)  # those are for the main thread
    time.sleep(FLUSH_SECONDS)
    _is_scheduled = False
    flush()


def flush(**_: object) -> None:
    """Add what was counted since the last call. While PostgreSQL is unavailable it stays counted for the next one."""
    with _lock:
        found = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in metrics.WORK.collect()
            for sample in family.samples
        }
        changed = {series: value for series, value in found.items() if value != _sent.get(series)}
        if not changed:
            return
        totals = [(name, dict(labels), value - _sent.get((name, labels), 0.0))
                  for (name, labels), value in changed.items()]  # fmt: skip
        database = Database(settings_module.get_settings().database_url.get_secret_value(), name="moorage-metrics")
        try:
            database.run(lambda conn: work_totals.add(conn, totals))
        except (DatabaseUnavailable, DatabaseLocked) as error:
            log.warning("metrics_flush.not_added", error=str(error))
            if not isinstance(error, CommitUncertain):  # added most likely; a total that is too high never falls again
                return
        finally:
            database.close()
        _sent.update(changed)
