"""
Erase an owner: rows, objects, uploads, projects and tokens.

What is left to do is what still exists, so that any process continues after a crash. Rows go after their objects, but
readers see neither from the first step on; docs/design.md has the order, and what a crash leaves.
"""

import math
import time
from functools import partial
from typing import Any, Final
from uuid import UUID

from db import erasures
from db.connection import Connection, Row
from moorage import logs
from moorage.failpoints import failpoint
from storage import keys
from tasks.jobs import cancel, delete_render
from tasks.step import Deps, run_unless_locked, skip_after_error

log = logs.get_logger(__name__)

SECONDS: Final = 8.0  # of a run by beat, every ten seconds
PAGE: Final = 20  # jobs
REASON: Final = "owner erased"


def continue_erasures(deps: Deps, actor: str, *, seconds: float = SECONDS) -> dict[str, Any]:
    """Continue all erasures for a time; returns the number of those that are finished."""
    until = time.monotonic() + seconds
    unfinished, erased = deps.database.run(erasures.list_unfinished), 0
    for row in unfinished:
        with skip_after_error("erasure.failed", row["id"]):
            erased += continue_erasure(deps, row, actor, until=until) is not None
    return {"erased": erased} if unfinished else {}


def continue_erasure(deps: Deps, erasure: Row, actor: str, *, until: float = math.inf) -> Row | None:
    """
    Erase what can be erased now; return the finished erasure, or None if something is left.

    Left are rows that another transaction has locked, and jobs whose predictions have not ended at their providers.
    """
    after, list_ids = UUID(int=0), partial(erasures.list_job_ids, owner=erasure["owner"], limit=PAGE)
    while time.monotonic() < until and (page := deps.database.run(partial(list_ids, after=after))):
        after = page[-1]
        for job_id in page:
            run_unless_locked(deps, partial(_withdraw, deps=deps, job_id=job_id, actor=actor), job_id=str(job_id))
            failpoint("erase.after_tombstone")
        _erase_jobs(deps, erasure, page)
    _erase_uploads(deps, erasure)
    if deps.database.run(partial(list_ids, after=UUID(int=0))):
        return None
    if run_unless_locked(deps, partial(erasures.delete_stray_deliveries, erasure=erasure)) is None:
        return None
    failpoint("erase.before_finish")
    prefix = keys.build_upload_prefix(erasure["owner"])
    finished = deps.database.run(lambda conn: erasures.finish(conn, erasure, prefix))
    if finished is not None:
        log.info("erasure.finished", erasure_id=erasure["id"], **finished["removed"])
    return finished


def _withdraw(conn: Connection, deps: Deps, job_id: UUID, actor: str) -> None:
    """Cancel a job if it is live, and hide its render and refused files; dispatch wakes what is then due."""
    if erasures.lock_job(conn, job_id):
        cancel.apply_cancellation(conn, job_id, actor)
        delete_render.delete_render(conn, job_id, asset_base=deps.asset_base, actor=actor, reason=REASON)
        erasures.release_quarantined(conn, job_id)


def _erase_jobs(deps: Deps, erasure: Row, job_ids: list[UUID]) -> None:
    storage = deps.storage
    erasable = deps.database.run(lambda conn: erasures.list_erasable(conn, job_ids))
    objects = 0
    for job in erasable:
        stem = f"{keys.RENDER_PREFIX}{job['id']}/"
        objects += _delete_objects(deps, storage.public_bucket, stem)
        objects += _delete_objects(deps, storage.private_bucket, stem)
        objects += _delete_objects(deps, storage.private_bucket, keys.build_quarantine_key(stem))
        for key in job["inputs"]:
            storage.delete(storage.private_bucket, key)
    failpoint("erase.after_objects")
    if erasable:
        ids = [job["id"] for job in erasable]
        run_unless_locked(deps, lambda conn: erasures.erase_jobs(conn, erasure, ids, objects), jobs=len(ids))
        failpoint("erase.after_rows")


def _erase_uploads(deps: Deps, erasure: Row) -> None:
    prefix, bucket = keys.build_upload_prefix(erasure["owner"]), deps.storage.private_bucket
    deps.database.run(lambda conn: erasures.mark_uploads(conn, erasure["owner"]))
    failpoint("erase.after_uploads")
    starts = (prefix, keys.build_quarantine_key(prefix))
    listed = [item.key for start in starts for item in deps.storage.list_objects(bucket, start)]
    present = deps.database.run(lambda conn: erasures.get(conn, erasure["id"]))
    if present is None or present["finished_at"] is not None:  # by another process: what is listed may be new
        return
    for key in listed:
        deps.storage.delete(bucket, key)
    deps.database.run(lambda conn: erasures.drop_uploads(conn, erasure, len(listed)))


def _delete_objects(deps: Deps, bucket: str, prefix: str) -> int:
    listed = [item.key for item in deps.storage.list_objects(bucket, prefix)]
    for key in listed:
        deps.storage.delete(bucket, key)
    return len(listed)
