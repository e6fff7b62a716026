"""Cancelling: what an application no longer wants is not submitted, not kept, and its providers are asked to stop."""

from dataclasses import dataclass
from uuid import UUID

from db import cancellation, discarding, jobs
from db.connection import Connection, Database
from moorage.failpoints import failpoint
from moorage.model import JobState, Wake
from moorage.settings import Settings
from moorage.transitions import TERMINAL_JOB_STATES

REASON = "cancelled by the application"


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """
    What became of a wish to cancel a job.

    Args:
        wakes: to be sent, best after the answer; one that is dropped is sent again by dispatch.
        refused: why nothing was done; None: it is cancelled now, or was before.
    """

    before: JobState
    after: JobState
    wakes: tuple[Wake, ...] = ()
    refused: str | None = None


def cancel_job(database: Database, settings: Settings, job_id: UUID, actor: str) -> CancelOutcome:  # noqa: ARG001 (as retry)
    """
    Cancel a job that is open or keeping.

    What is published already stays. A provider that has begun goes on until it stops: its end is recorded, no file of
    it is taken.

    Raises:
        LookupError: there is no such job.
        DatabaseUnavailable: nothing was done, or (CommitUncertain) nobody knows: ask again, it is done once.
    """
    outcome = database.run(lambda conn: _cancel(conn, job_id, actor))
    failpoint("cancel.after_commit")
    return outcome


def _cancel(conn: Connection, job_id: UUID, actor: str) -> CancelOutcome:
    job = jobs.lock(conn, job_id)
    if job.state in TERMINAL_JOB_STATES:
        refused = None if job.state == "cancelled" else f"the job is {job.state} already"
        return CancelOutcome(job.state, job.state, refused=refused)
    jobs.change_state(conn, job, "cancelled", actor=actor, reason=REASON)
    wakes = cancel_predictions(conn, job.id, reason=REASON, actor=actor)
    cancellation.cancel_waiting_outputs(conn, job.id, reason=REASON, actor=actor)
    discarded = discarding.mark_discarding(conn, job.id, REASON, actor, include_placeholder=True)
    return CancelOutcome(job.state, "cancelled", (*wakes, *(Wake("discard", output_id) for output_id in discarded)))


def cancel_predictions(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> list[Wake]:
    """Stop all of a locked job's predictions that have not ended; returns wakes for those whose provider is asked."""
    cancel_planned(conn, job_id, reason=reason, actor=actor)
    return [
        Wake("poll", prediction_id) for prediction_id in cancellation.request_cancellation(conn, job_id, reason=reason)
    ]


def cancel_planned(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> bool:
    """End those of a locked job's predictions that were not submitted yet; False when there is none."""
    return bool(cancellation.cancel_planned(conn, job_id, reason=reason, actor=actor))
