"""The reconcile sweep: five repairs, each safe at any time and by any number of workers at once."""

import random
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import psycopg

from db import cancellation, clock_skew, deferral, jobs, leases, placements, predictions, progress, projects
from db.connection import Connection
from moorage import logs
from moorage.failpoints import failpoint
from moorage.model import ProjectKey, Wake
from moorage.retry_policy import DeadLetterDecision
from tasks.jobs import fallback, settle
from tasks.step import Deps, SendWakes, Work, skip_after_error

RECHECK_INTERVAL: Final = timedelta(seconds=60)
MAX_LOCKED: Final = 2  # each is waited for, and its holder looked up, for a third of a second: dispatch waits meanwhile
RENEWED_BY: Final = 2 / 3  # of a lease's duration: its second renewal is due by then
LOCK_MS: Final = 50  # a locked row is skipped: the next run finds it again

log = logs.get_logger(__name__)
Repair = Callable[[Connection, Any], list[Wake] | None]  # of one row


def reconcile(deps: Deps, actor: str, send: SendWakes, due: Collection[str]) -> dict[str, Any]:
    """Make the repairs that are due; returns counts. Ends each after MAX_LOCKED locked rows: the next run continues."""
    correct = partial(clock_skew.correct_future_times, lease_seconds=deps.settings.lease_seconds)
    clock = deps.database.run(correct) if "clock" in due else 0
    wakes = release_leases(deps, actor) if "leases" in due else []
    released, check = len(wakes), partial(check_job, deps=deps, actor=actor)
    document = partial(repair_document, asset_base=deps.asset_base)
    repairs: dict[str, tuple[Work[list[Any]], Repair, Repair | None, str]] = {
        "jobs": (jobs.list_due, check, _postpone_check, "job.check_failed"),
        "documents": (projects.list_overwritten, document, None, "project.repair_failed"),
        "statuses": (progress.list_wrong_statuses, progress.update_status, None, "project.status_failed"),
    }
    counts = {name: _repair_rows(deps, *repair, wakes) if name in due else 0 for name, repair in repairs.items()}
    send(wakes)
    return {"released": released, "clock": clock, **counts}


def release_leases(deps: Deps, actor: str) -> list[Wake]:
    try:
        deps.database.run(leases.record_timeline)
    except psycopg.Error as error:  # a server without a write-ahead log of its own starts empty at a failover
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


def _repair_rows(
    deps: Deps, list_rows: Work[list[Any]], repair: Repair, pass_over: Repair | None, event: str, wakes: list[Wake]
) -> int:
    """
    Repair rows, each in a transaction, until some were locked; add to `wakes`, and return how many rows there were.

    In random order, so that the same ones do not delay the others for ever. `pass_over` is run for a row that fails.
    """
    rows, locked = deps.database.run(list_rows), list[Any]()

    def run(work: Repair, row: Any) -> list[Wake]:
        return deps.database.run(lambda conn: work(conn, row), lock_ms=LOCK_MS, point="reconcile") or []

    for row in random.sample(rows, len(rows)):
        if len(locked) < MAX_LOCKED:
            with skip_after_error(event, row, locked) as failures:
                wakes += run(repair, row)
            with skip_after_error(event, row):
                if failures and pass_over:
                    run(pass_over, row)
    return len(rows)


def _postpone_check(conn: Connection, job_id: UUID) -> None:
    """Have a job pass whose check failed, unless it is locked: a hundred of them were all that each run looked at."""
    jobs.postpone(conn, job_id, RECHECK_INTERVAL)


def check_job(conn: Connection, job_id: UUID, deps: Deps, actor: str) -> list[Wake]:
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


def repair_document(conn: Connection, key: ProjectKey, asset_base: str) -> None:
    project = projects.lock(conn, key)
    if project is not None:
        placements.update_image_urls(conn, project, asset_base)
