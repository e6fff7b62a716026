"""Cancel a job: its planned predictions are not submitted, running ones are cancelled, its outputs are discarded."""

from dataclasses import dataclass
from uuid import UUID

from db import cancellation, discarding, jobs
from db.connection import Connection, Database
from moorage.model import JobState, Wake
from moorage.settings import Settings
from moorage.transitions import TERMINAL_JOB_STATES

REASON = "cancelled by the application"


@dataclass(frozen=True, slots=True)
class ActionOutcome:
    """The result of a cancellation or a retry."""

    before: JobState
    after: JobState
    wakes: tuple[Wake, ...] = ()  # to be published after the HTTP response; dispatch publishes lost ones again
    replayed: int = 0  # number of dead letters that a retry replayed
    refused: str | None = None  # why nothing was changed; None: the action succeeded, now or before


def cancel_job(database: Database, settings: Settings, job_id: UUID, actor: str) -> ActionOutcome:  # noqa: ARG001 (as retry_job)
    """
    Cancel an open or keeping job; repeating is safe. Raises LookupError.

    A published render remains. The end of a prediction that is running is recorded, but its files are not downloaded.
    """
    return database.run(lambda conn: apply_cancellation(conn, job_id, actor), point="cancel")


def apply_cancellation(conn: Connection, job_id: UUID, actor: str) -> ActionOutcome:
    """Cancel a job in a transaction, as `cancel_job` does."""
    job = jobs.lock(conn, job_id)
    if job.state in TERMINAL_JOB_STATES:
        refused = None if job.state == "cancelled" else f"the job is {job.state} already"
        return ActionOutcome(job.state, job.state, refused=refused)
    jobs.change_state(conn, job, "cancelled", actor=actor, reason=REASON)
    wakes = cancel_predictions(conn, job.id, reason=REASON, actor=actor)
    cancellation.cancel_waiting_outputs(conn, job.id, reason=REASON, actor=actor)
    discarded = discarding.mark_discarding(conn, job.id, REASON, actor, include_placeholder=True)
    return ActionOutcome(job.state, "cancelled", (*wakes, *(Wake("discard", output_id) for output_id in discarded)))


def cancel_predictions(conn: Connection, job_id: UUID, *, reason: str, actor: str) -> list[Wake]:
    """Cancel the live predictions of a locked job; returns wakes for those to be cancelled at their provider."""
    cancellation.cancel_planned(conn, job_id, reason=reason, actor=actor)
    prediction_ids = cancellation.request_cancellation(conn, job_id, reason=reason)
    return [Wake("poll", prediction_id) for prediction_id in prediction_ids]
