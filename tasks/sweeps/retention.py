"""
Retention: what has been kept for as long as the settings say goes, in batches and short transactions.

A render is deleted as a tombstone: readers see it no more, its files go to `discarding`, and the discard step deletes
their objects. Rows go whole, with their events, so that the rules stay true for what is left.
"""

import time
from functools import partial
from typing import Any, Final
from uuid import UUID

from db import retention, usage
from db.connection import Connection
from moorage import logs
from moorage.failpoints import failpoint
from moorage.settings import Settings
from tasks.jobs import delete_render
from tasks.step import Deps

log = logs.get_logger(__name__)

SECONDS: Final = 240.0  # a run by beat; Celery's hard limit is 600 s
_BATCH: Final = 500
_JOBS: Final = 100  # each is a transaction of its own
_DAY: Final = 86400.0


def retention_seconds(settings: Settings) -> dict[str, float]:
    """Return how long each kind is kept after its end, in the order in which they go; without those kept for ever."""
    days = {
        "renders": settings.retention_renders_days,
        "bodies": settings.retention_bodies_days,
        "failed_bodies": settings.retention_bodies_days,
        "failed_sources": settings.retention_bodies_days,
        "deliveries": settings.retention_rows_days,
        "dead_letters": settings.retention_rows_days,
        "notifications": settings.retention_rows_days,
        "jobs": settings.retention_rows_days,
    }
    return {what: kept * _DAY for what, kept in days.items() if kept > 0}


def count_expired(deps: Deps) -> dict[str, int]:
    """Return how many of each kind `run` would take now."""
    kept = retention_seconds(deps.settings)
    return deps.database.run(lambda conn: retention.count_old_rows(conn, kept, list(kept)))


def delete_expired(deps: Deps, actor: str, *, seconds: float | None = None) -> dict[str, int]:
    """
    Take what is old enough; returns how many of each kind.

    Args:
        seconds: begin no batch after so long; the next run goes on.

    Raises:
        DatabaseUnavailable: PostgreSQL went away; what was done stays done.
    """
    until = None if seconds is None else time.monotonic() + seconds
    done: dict[str, int] = {}
    for what, kept in retention_seconds(deps.settings).items():
        done[what] = 0
        while (until is None or time.monotonic() < until) and (taken := _batch(deps, what, kept, actor)):
            done[what] += taken
            failpoint("retention.after_batch")
    if any(done.values()):
        log.info("retention.done", **done)
    return done


def _batch(deps: Deps, what: str, kept: float, actor: str) -> int:
    """Take a batch; 0 when nothing is left, or when somebody holds all that is."""
    if what == "renders":
        return _renders(deps, kept, actor)
    if what == "jobs":
        found = deps.database.run(partial(retention.list_old_jobs, seconds=kept, limit=_JOBS))
        return sum(deps.database.run(partial(retention.delete_job, job_id=job_id)) for job_id in found)
    return deps.database.run(partial(retention.purge_batch, kind=what, seconds=kept, limit=_BATCH))


def _renders(deps: Deps, kept: float, actor: str) -> int:
    found = deps.database.run(partial(retention.list_old_renders, seconds=kept, limit=_JOBS))
    work = partial(_delete, asset_base=deps.asset_base, kept=kept, actor=actor)
    return sum(deps.database.run(partial(work, render_id=render_id)) for render_id in found)


def _delete(conn: Connection, asset_base: str, kept: float, actor: str, render_id: UUID) -> bool:
    """Make a render a tombstone in one transaction: job, outputs, project, results."""
    job = retention.lock_old_render(conn, render_id, kept)
    if job is None:
        return False
    reason = "older than renders are kept"
    delete_render.create_tombstone(
        conn, render_id, job["project_id"], asset_base=asset_base, actor=actor, reason=reason
    )
    return True


def count_storage_use(deps: Deps) -> dict[str, Any]:
    """Count the storage used by owner and bucket anew; returns objects and bytes of each bucket."""
    deps.database.run(usage.recompute_usage)
    return {
        row["bucket"]: {"objects": row["objects"], "bytes": row["bytes"]}
        for row in deps.database.run(usage.list_totals)
    }
