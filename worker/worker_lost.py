"""Release of the leases of pool children that were killed or exceeded the hard time limit."""

from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError

from db import leases
from db.connection import Database
from moorage import logs
from moorage import settings as settings_module
from moorage.errors import DatabaseLocked, DatabaseUnavailable
from moorage.model import Wake
from tasks.sweeps.reconcile import STEP_BY_TABLE
from worker import publish

log = logs.get_logger(__name__)


def release_leases(sender: Any = None, task_id: str = "", exception: BaseException | None = None, **_: object) -> None:
    """
    Release the leases of a pool child that died, over a separate connection, and publish wakes for their rows.

    A handler of `task_failure` in the worker's main process; other failures are ignored: their step recorded them.
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
    publish.publish_wakes([Wake(STEP_BY_TABLE[table], row_id) for table, row_id in rows])
