"""The reconcile sweep: five repairs, each safe at any time and by any number of workers at once."""

import random
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg

from db import cancellation, clock_skew, deferral, jobs, leases, placements, predictions, progress, projects
from db.connection import Connection
from moorage import logs
from moorage.failpoints import failpoint
from moorage.model import ProjectKey, Wake
from moorage.retry_policy import DeadLetterDecision
from tasks.jobs import fallback, settle
from tasks.step import Deps, SendWakes, skip_after_error

RECHECK_INTERVAL: Final = timedelta(seconds=60)
REPAIRS: Final = ("clock", "leases", "jobs", "documents", "statuses")
MAX_LOCKED: Final = 2  # each is waited for, and its holder looked up, for a third of a second: dispatch waits meanwhile
RENEWED_BY: Final = 2 / 3  # of a lease's duration: its second renewal is due by then
LOCK_MS: Final = 50  # a locked row is skipped: the next run finds it again

log = logs.get_logger(__name__)
T = TypeVar("T")


def reconcile(deps: Deps, actor: str, send: SendWakes, due: Collection[str] = REPAIRS) -> dict[str, Any]:
    """Make the repairs that are due; returns counts. Ends each after MAX_LOCKED locked rows: the next run continues."""
    clock = 0
    if "clock" in due:
        clock = deps.database.run(partial(correct_clock, lease_seconds=deps.settings.lease_seconds))
    released = release_leases(deps, actor) if "leases" in due else []
    checked, wakes = check_deadlines(deps, actor) if "jobs" in due else (0, [])
    documents = repair_documents(deps) if "documents" in due else 0
    statuses = correct_statuses(deps) if "statuses" in due else 0
    send(released + wakes)
    return {"released": len(released), "jobs": checked, "documents": documents, "clock": clock, "statuses": statuses}


def correct_clock(conn: Connection, lease_seconds: float) -> int:
    """Move times that lie too far ahead to the present after PostgreSQL's clock was set back; returns rows."""
    return clock_skew.correct_future_times(conn, lease_seconds) if clock_skew.was_clock_set_back(conn) else 0


def release_leases(deps: Deps, actor: str) -> list[Wake]:
    try:
        deps.database.run(leases.record_timeline)
    except psycopg.Error as error:  # a server without a write-ahead log of its own starts anew at a failover
        log.debug("timeline.unknown", error=str(error))
    failpoint("reconcile.after_timeline")
    wakes: list[Wake] = []
    seconds, period = deps.settings.lease_seconds, deps.settings.constants.reconcile_seconds
    min_ticks = max(1, int(RENEWED_BY * seconds / period))
    for table, step in leases.STEP_BY_TABLE.items():
        release = partial(leases.release_expired, table=table, actor=actor, lease_seconds=seconds, min_ticks=min_ticks)
        row_ids = deps.database.run(release)
        failpoint("reconcile.after_release")
        wakes += [Wake(step, row_id) for row_id in row_ids]
    return wakes


def _draw_rows(rows: Sequence[T], locked: Sequence[T]) -> Iterator[T]:
    """Yield rows until some were locked; in random order, so that the same ones do not delay the others for ever."""
    for row in random.sample(rows, len(rows)):
        if len(locked) < MAX_LOCKED:
            yield row


def check_deadlines(deps: Deps, actor: str) -> tuple[int, list[Wake]]:
    job_ids, locked = deps.database.run(jobs.list_due), list[UUID]()
    wakes: list[Wake] = []
    for job_id in _draw_rows(job_ids, locked):
        with skip_after_error("job.check_failed", job_id, locked) as failures:
            work = partial(check_job, deps=deps, job_id=job_id, actor=actor)
            wakes += deps.database.run(work, lock_ms=LOCK_MS)
            failpoint("reconcile.after_check")
        with skip_after_error("job.postpone_failed", job_id):
            if failures:  # else a hundred such jobs were all that each run looks at
                deps.database.run(partial(jobs.postpone, job_id=job_id, wait=RECHECK_INTERVAL), lock_ms=LOCK_MS)
    return len(job_ids), wakes


def check_job(conn: Connection, deps: Deps, job_id: UUID, actor: str) -> list[Wake]:
    """Poll what an open job awaits, or advance its chain if it awaits nothing; recount a keeping job."""
    job = jobs.lock(conn, job_id)
    if not jobs.postpone(conn, job_id, RECHECK_INTERVAL):
        return []
    if job.state == "keeping":
        deferral.defer_blocked(conn, job_id, seconds=deps.policy.job_wait_seconds, actor=actor)
        return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=actor)
    reason = "the job's deadline has passed"
    if not cancellation.cancel_planned(conn, job_id, reason=reason, actor=actor):
        reason = "no answer within the time limit"
    polls = [Wake("poll", prediction_id) for prediction_id in predictions.make_due_by_job(conn, job_id)]
    decision = DeadLetterDecision("TIMED_OUT", "NoAnswer", reason, retryable=True)
    return polls + fallback.advance(conn, job, decision, actor=actor)


def repair_documents(deps: Deps) -> int:
    keys, locked = deps.database.run(projects.list_overwritten), list[ProjectKey]()
    for key in _draw_rows(keys, locked):
        with skip_after_error("project.repair_failed", key, locked):
            work = partial(repair_document, key=key, asset_base=deps.asset_base)
            deps.database.run(work, lock_ms=LOCK_MS)
            failpoint("reconcile.after_mend")
    return len(keys)


def repair_document(conn: Connection, key: ProjectKey, asset_base: str) -> None:
    project = projects.lock(conn, key)
    if project is not None:
        placements.update_image_urls(conn, project, asset_base)


def correct_statuses(deps: Deps) -> int:
    """Compare the status of the next projects with their jobs and correct it; returns how many differed."""
    keys, locked = deps.database.run(progress.list_wrong_statuses), list[ProjectKey]()
    for key in _draw_rows(keys, locked):
        with skip_after_error("project.status_failed", key, locked):
            deps.database.run(partial(progress.update_status, project=key), lock_ms=LOCK_MS)
    return len(keys)
