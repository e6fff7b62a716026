"""
The retention sweep: delete what is older than the settings allow, in batches and short transactions.

A render becomes a tombstone, and the discard step deletes its objects. Rows are deleted together with their events, so
that the rules hold for the remaining rows.
"""

import math
import time
from functools import partial
from typing import Any, Final
from uuid import UUID

from db import ended_counts, retention, storage_use, uploads, work_totals
from db.connection import Connection
from moorage import logs
from moorage.failpoints import failpoint
from moorage.model import ProjectKey
from moorage.settings import Settings
from tasks.jobs import delete_render
from tasks.step import Deps, run_unless_locked

log = logs.get_logger(__name__)

SECONDS: Final = 240.0  # per run by beat; the limit of a sweep is 600 s
_BATCH: Final = 500
_JOBS: Final = 100
_DAY: Final = 86400.0
_MIN_ROWS_DAYS: Final = 7.0  # a provider repeats a webhook for up to three days (OpenAI): its id is known for longer


def retention_seconds(settings: Settings) -> dict[str, float]:
    """Return how long each kind is retained, in the order of deletion; without those never deleted."""
    of = settings.retention_days
    rows_days = max(of["rows"], _MIN_ROWS_DAYS) if of["rows"] else 0.0
    days = {
        **dict.fromkeys(("renders", "uploads"), of["renders"]),
        **dict.fromkeys(("bodies", "failed_bodies", "failed_sources"), of["bodies"]),
        "open_dead_letters": of["dead_letters"],
        **dict.fromkeys(("deliveries", "dead_letters", "notifications", "jobs", "deleted_uploads"), rows_days),
    }
    seconds = {"quarantine": settings.quarantine_seconds}
    return seconds | {kind: limit * _DAY for kind, limit in days.items() if limit > 0}


def count_expired(deps: Deps) -> dict[str, int]:
    count, limits = retention.count_expired_rows, retention_seconds(deps.settings).items()
    return {kind: deps.database.run(partial(count, kind=kind, seconds=limit)) for kind, limit in limits}


def delete_expired(deps: Deps, actor: str, *, seconds: float = math.inf) -> dict[str, int]:
    """Delete what is old enough; returns counts by kind. Begins no batch after `seconds`: the next run continues."""
    until, counts = time.monotonic() + seconds, dict[str, int]()
    for kind, limit in retention_seconds(deps.settings).items():
        counts[kind] = _delete_old_jobs(deps, limit, until) if kind == "jobs" else 0
        while kind != "jobs" and time.monotonic() < until and (count := _delete_batch(deps, kind, limit, actor)):
            counts[kind] += count
            failpoint("retention.after_batch")
    if any(counts.values()):
        log.info("retention.done", **counts)
    return counts


def _delete_old_jobs(deps: Deps, seconds: float, until: float) -> int:
    count, list_page = 0, partial(retention.list_old_jobs, seconds=seconds, limit=_JOBS)
    for sql in (retention.OLD_FAILED_JOBS, retention.OLD_DELETED_JOBS):
        after = retention.START
        while time.monotonic() < until and (page := deps.database.run(partial(list_page, sql=sql, after=after))):
            after = page[-1]["at"], page[-1]["id"]
            count += _delete_jobs(deps, [row["id"] for row in page])
            failpoint("retention.after_batch")
    return count


def _delete_jobs(deps: Deps, job_ids: list[UUID]) -> int:
    """Delete jobs in one transaction, or each in its own if a row of one of them is locked."""
    count = run_unless_locked(deps, partial(retention.delete_jobs, job_ids=job_ids), jobs=len(job_ids))
    if count is None and len(job_ids) > 1:
        return sum(_delete_jobs(deps, [job_id]) for job_id in job_ids)
    return count or 0


def _delete_batch(deps: Deps, kind: str, limit: float, actor: str) -> int:
    """Delete a batch; returns 0 if the remaining rows are locked or none is left."""
    if kind == "renders":
        return _delete_renders(deps, limit, actor)
    if kind == "uploads":
        return _delete_uploads(deps, limit)
    expire = partial(retention.expire_batch, kind=kind, seconds=limit, limit=_BATCH, actor=actor)
    return run_unless_locked(deps, expire, kind=kind) or 0


def _delete_uploads(deps: Deps, limit: float) -> int:
    """Delete uploads, rows first: the orphan sweep deletes objects that are left after a crash."""
    marked = deps.database.run(partial(uploads.mark_old, seconds=limit, limit=_BATCH))
    failpoint("retention.after_uploads")
    for key in marked:
        deps.storage.delete(deps.storage.private_bucket, key)
    return len(marked)


def _delete_renders(deps: Deps, limit: float, actor: str) -> int:
    render_ids = deps.database.run(partial(retention.list_old_renders, seconds=limit, limit=_JOBS))
    delete = partial(_delete_render, asset_base=deps.asset_base, limit=limit, actor=actor)
    return sum(bool(run_unless_locked(deps, partial(delete, render_id=x), render_id=str(x))) for x in render_ids)


def _delete_render(conn: Connection, asset_base: str, limit: float, actor: str, render_id: UUID) -> bool:
    job = retention.lock_old_render(conn, render_id, limit)
    if job is None:
        return False
    key = None if job["project_id"] is None else ProjectKey(job["owner"], job["project_id"])
    reason = "older than the retention period"
    delete_render.create_tombstone(
        conn, render_id, key, job["scene"], asset_base=asset_base, actor=actor, reason=reason
    )
    return True


def count_storage_use(deps: Deps) -> dict[str, Any]:
    """Count the storage in use, page by page; after SECONDS the next run goes on."""
    until = time.monotonic() + SECONDS
    while deps.database.run(storage_use.count_next_page) and time.monotonic() < until:
        failpoint("usage.after_page")
    rows, names = deps.database.run(storage_use.list_largest), ("objects", "bytes")
    used = {bucket: [row for row in rows if row["bucket"] == bucket] for bucket in ("public", "private")}
    return {bucket: {name: sum(row[name] for row in part) for name in names} for bucket, part in used.items() if part}


def count_ended_rows(deps: Deps) -> dict[str, Any]:
    """Count what ended for /metrics, up to the last complete slot, an hour in each transaction."""
    deps.database.run(work_totals.forget_unused)  # any host may have been downloaded from
    while deps.database.run(ended_counts.count_next_hour):
        failpoint("counts.after_hour")
    return {}
