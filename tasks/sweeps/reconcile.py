"""Sweeps: what beat starts. Each is safe at any time, by any number of workers at once."""

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import psycopg

from db import clock_skew, jobs, leases, orphans, predictions, progress, projects
from db.connection import Connection
from moorage import logs
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision
from moorage.model import Queue, Step, Wake, WorkTable
from tasks.jobs import cancel, settle
from tasks.outputs import discard as discard_step
from tasks.step import Deps

STEPS_BY_QUEUE: Final[Mapping[Queue, tuple[Step, ...]]] = {
    "quick": ("submit", "poll", "notify", "ingest"),
    "keep": ("generate", "keep"),
}
# A freed prediction that is still to be submitted is no row for a poll: dispatch wakes it within a second.
STEP_BY_TABLE: Final[Mapping[WorkTable, Step]] = {
    "deliveries": "ingest",
    "predictions": "poll",
    "outputs": "keep",
    "notices": "notify",
}
RECHECK_INTERVAL: Final = timedelta(seconds=60)
QUEUE_SHARE: Final = 0.25  # of a queue's room that goes to each step before the last, which may come as a flood
STATUSES: Final = 500  # projects a run whose status is compared with their jobs
MIN_DISCARDS_PER_RUN: Final = 4  # discards a run, however full the queue is

log = logs.get_logger(__name__)

ROW_ERRORS: Final = (psycopg.Error, LookupError)

SendWakes = Callable[[list[Wake]], int]
GetQueueDepth = Callable[[Queue], int | None]


def dispatch_due(deps: Deps, depth_of: GetQueueDepth, send: SendWakes) -> dict[str, Any]:
    """
    Top each queue up with wakes for the most urgent due rows; returns how many by queue.

    A queue found empty has lost its wakes or served them: rows woken less than 30 s ago are then woken again.
    """
    sent: dict[str, Any] = {}
    for queue, steps in STEPS_BY_QUEUE.items():
        depth = depth_of(queue)
        if depth is None:
            return {"broker": "away"}
        room, starved = deps.settings.constants.queue_depth - depth, depth == 0
        for step in steps:
            limit = room if step == steps[-1] else math.ceil(room * QUEUE_SHARE)
            wakes = _due(deps, step, limit, starved=starved) if limit > 0 else []
            failpoint("dispatch.after_commit")
            sent[step] = send(wakes) if wakes else 0
            room -= len(wakes)
    return sent


def _due(deps: Deps, step: Step, limit: int, *, starved: bool) -> list[Wake]:
    synchronous = [name for name, provider in deps.providers.items() if provider.is_synchronous]
    found = deps.database.run(
        lambda conn: leases.wake_due(conn, step, limit=limit, queue_is_empty=starved, synchronous=synchronous)
    )
    return [Wake(step, row_id) for row_id in found]


def dispatch_discards(deps: Deps, depth_of: GetQueueDepth, send: SendWakes) -> dict[str, Any]:
    """Wake outputs whose objects are to be deleted, and delete spooled inputs of settled jobs."""
    depth = depth_of("keep")
    if depth is None:
        return {"broker": "away", "spooled": discard_step.delete_spooled_inputs(deps)}
    room = max(
        deps.settings.constants.queue_depth - depth, MIN_DISCARDS_PER_RUN
    )  # a queue that stays full must not starve it
    wakes = _due(deps, "discard", room, starved=depth == 0)
    sent = send(wakes) if wakes else 0
    return {"discarding": sent, "spooled": discard_step.delete_spooled_inputs(deps)}


def reconcile(deps: Deps, actor: str, send: SendWakes) -> dict[str, Any]:
    """Free expired leases, look at jobs whose time has come, and mend documents that somebody overwrote."""
    healed = deps.database.run(partial(_heal_clock, lease_seconds=deps.settings.lease_seconds))
    released: list[Wake] = []
    for table, step in STEP_BY_TABLE.items():
        freed = deps.database.run(partial(leases.release_expired, table=table, actor=actor))
        failpoint("reconcile.after_release")
        released += [Wake(step, row_id) for row_id in freed]
    checked, wakes = _check_jobs(deps, actor)
    mended = _mend_documents(deps)
    corrected = deps.database.run(_correct_statuses)
    send(released + wakes)
    done = {"released": len(released), "jobs": checked, "documents": mended, "clock": healed}
    return {**done, "statuses": corrected}


def _heal_clock(conn: Connection, lease_seconds: float) -> int:
    """After the database's clock was set back, bring near what would else wait until it has caught up."""
    return clock_skew.correct_future_times(conn, lease_seconds) if clock_skew.was_clock_set_back(conn) else 0


def _check_jobs(deps: Deps, actor: str) -> tuple[int, list[Wake]]:
    found = deps.database.run(jobs.list_due)
    wakes: list[Wake] = []
    for job_id in found:
        try:
            wakes += deps.database.run(partial(_check_job, deps=deps, job_id=job_id, actor=actor))
            failpoint("reconcile.after_check")
        except ROW_ERRORS as error:  # one that PostgreSQL refuses must not keep the others waiting
            log.error("job.check_failed", job_id=str(job_id), error=f"{type(error).__name__}: {error}")
    return len(found), wakes


def _check_job(conn: Connection, deps: Deps, job_id: UUID, actor: str) -> list[Wake]:
    """Ask once more for what an open job awaits, end its chain when it awaits nothing; count a keeping job again."""
    job = jobs.lock(conn, job_id)
    if not jobs.postpone(conn, job_id, RECHECK_INTERVAL):
        return []
    if job.state == "keeping":
        return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=actor)
    over = "the job's deadline has passed"
    reason = (
        over if cancel.cancel_planned(conn, job_id, reason=over, actor=actor) else "no answer within the time limit"
    )
    due = predictions.make_due_by_job(conn, job_id)
    why = DeadLetterDecision("TIMED_OUT", "NoAnswer", reason, retryable=True)
    wakes = settle.advance(conn, job, why, actor=actor)
    return [*(Wake("poll", prediction_id) for prediction_id in due), *wakes]


def _mend_documents(deps: Deps) -> int:
    found = deps.database.run(projects.list_overwritten)
    for project_id in found:
        try:
            deps.database.run(partial(_mend, deps=deps, project_id=project_id))
            failpoint("reconcile.after_mend")
        except ROW_ERRORS as error:
            log.error("project.mend_failed", project_id=project_id, error=f"{type(error).__name__}: {error}")
    return len(found)


def _correct_statuses(conn: Connection) -> int:
    """Go through some projects more, and write the status of each that disagrees with its jobs; returns how many."""
    begun = orphans.load_cursor(conn, "progress")
    differing, after = progress.list_wrong_statuses(conn, begun.after_key if begun else "", STATUSES)
    for project_id in differing:
        progress.update_status(conn, project_id)
    orphans.save_cursor(conn, "progress", orphans.ScanCursor("projects", after) if after else None)
    return len(differing)


def _mend(conn: Connection, deps: Deps, project_id: str) -> None:
    project = projects.lock(conn, project_id)
    if project is not None:
        projects.update_image_urls(conn, project, deps.asset_base)
