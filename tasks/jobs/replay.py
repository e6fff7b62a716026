"""Replays and discards dead letters, and retries jobs. Only a replay leaves a terminal state; it locks the job."""

import contextlib
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from db import (
    dead_letters,
    deferral,
    deliveries,
    jobs,
    notifications,
    outputs,
    owner_limits,
    placeholders,
    predictions,
    renders,
    submissions,
)
from db.connection import Connection, Database
from db.dead_letters import DeadLetterFilter
from moorage import ids
from moorage.errors import Refused
from moorage.model import DeadLetter, Job, Wake
from moorage.settings import Settings
from moorage.transitions import TERMINAL_JOB_STATES
from tasks.jobs import create
from tasks.jobs.cancel import ActionOutcome

REOPENED = "reopened by a replay"
REPLAY_DEADLINE = timedelta(minutes=15)  # how long a replayed prediction is waited for
RETRIED = "retried by the application"
MAX_DEAD_LETTERS = 1000  # read per job


def replay_dead_letter(conn: Connection, dead_letter_id: UUID, actor: str) -> Wake | None:
    """Reset the row of an open dead letter, so that its step runs again. Raises Refused if that is impossible."""
    letter = dead_letters.get(conn, dead_letter_id)
    if letter is None:
        raise Refused(f"no dead letter {dead_letter_id}", status=404)
    job = jobs.lock(conn, letter.job_id) if letter.job_id and letter.subject in ("output", "prediction") else None
    if job is not None and job.partial == "discard" and (letter.subject, letter.state) == ("output", "replayed"):
        return Wake("keep", letter.subject_id)  # with another file of its job
    wake = _requeue(conn, letter, job, actor)
    if not dead_letters.close(conn, dead_letter_id, "replayed", actor):
        raise Refused(f"dead letter {dead_letter_id} is already {letter.state}", status=409)
    return wake


def _requeue(conn: Connection, letter: DeadLetter, job: Job | None, actor: str) -> Wake | None:
    if letter.subject == "delivery":
        if not deliveries.replay(conn, letter.subject_id, actor):
            raise Refused("delivery is no longer dead, or its body was purged", status=409)
        return Wake("ingest", letter.subject_id)
    if letter.subject == "notification":
        if not notifications.replay(conn, letter.subject_id, actor):
            raise Refused("notification is no longer dead", status=409)
        return Wake("notify", letter.subject_id)
    if job is not None and job.state == "cancelled":
        raise Refused("job is cancelled and cannot be reopened", status=409)
    if letter.subject == "prediction" and job is not None:
        if not predictions.replay(conn, letter.subject_id, deadline=REPLAY_DEADLINE, actor=actor):
            raise Refused("prediction is no longer lost, or has no external id", status=409)
        if job.state == "failed":
            jobs.change_state(conn, job, "open", actor=actor, reason=REOPENED, check_after=REPLAY_DEADLINE)
        return Wake("poll", letter.subject_id)
    if letter.subject == "output" and job is not None:
        return _requeue_output(conn, letter, job, actor)
    raise Refused("message without a row cannot be replayed; discard it", status=409)


def _requeue_output(conn: Connection, letter: DeadLetter, job: Job, actor: str) -> Wake:
    if job.state == "open":  # an open job counts no outputs: nothing would publish this file
        raise Refused("job awaits another prediction; retry after that has ended", status=409)
    if renders.is_deleted(conn, job.id):
        raise Refused("render was deleted; create a new job", status=409)
    output = outputs.get(conn, letter.subject_id)
    if output is None:
        raise Refused("output no longer exists", status=409)
    if output.prediction_id != job.chosen_id and not placeholders.is_placeholder_chosen(conn, job.id):
        raise Refused("job already uses the files of another prediction", status=409)
    others_of = output.prediction_id if job.partial == "discard" else None
    replayed = outputs.replay(conn, output.id, actor, others_of)
    if output.id not in replayed:
        raise Refused("output is no longer dead, or its source was purged", status=409)
    if job.state in TERMINAL_JOB_STATES:
        jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=output.prediction_id, reason=REOPENED)
    elif output.prediction_id != job.chosen_id:
        raise Refused("placeholder upload in progress; retry later", status=409)
    if others_of and jobs.count_outputs(conn, job.id).dead:  # all or nothing: this one would be discarded, too
        reason = "other files of this job were discarded by its `partial` policy, or cannot be replayed"
        raise Refused(f"{reason}; create a new job", status=409)
    for other_id in sorted({*replayed} - {output.id}):
        dead_letters.close_by_subject(conn, "output", other_id, reason="replayed with another file", actor=actor)
    return Wake("keep", letter.subject_id)


def discard_dead_letter(conn: Connection, dead_letter_id: UUID, actor: str) -> None:
    if not dead_letters.close(conn, dead_letter_id, "discarded", actor):
        raise Refused(f"dead letter {dead_letter_id} is not open", status=409)


def resend_notification(conn: Connection, notification_id: UUID, actor: str) -> Wake:
    """Send a notification again, whether it was sent or given up. Raises Refused: 404, 409 it is being sent."""
    if notifications.get(conn, notification_id) is None:
        raise Refused(f"no notification {notification_id}", status=404)
    if not notifications.replay(conn, notification_id, actor, ("sent", "dead")):
        raise Refused(f"notification {notification_id} is waiting to be sent", status=409)
    dead_letters.close_by_subject(conn, "notification", notification_id, reason="sent again", actor=actor)
    return Wake("notify", notification_id)


# --- retries -----------------------------------------------------------------------------------------------------


def retry_job(
    database: Database, settings: Settings, job_id: UUID, actor: str, limits: Mapping[str, int] = create.NO_LIMITS
) -> ActionOutcome:
    """
    Replay the dead letters of a failed or partial job; if none can be, restart its fallback chain with a new deadline,
    or attempt at once what is still attempted. A published render remains.

    Dead letters that failed again after a replay are not replayed if the chain can restart: otherwise a provider that
    has deleted its files would prevent every restart. `limits`: of the owner. Raises LookupError, OwnerLimitReached.
    """
    deadline = timedelta(seconds=settings.job_deadline_seconds)
    return database.run(lambda conn: _retry(conn, job_id, deadline, actor, limits), point="retry")


def _retry(conn: Connection, job_id: UUID, deadline: timedelta, actor: str, limits: Mapping[str, int]) -> ActionOutcome:
    job = jobs.lock(conn, job_id)
    if job.state not in ("failed", "partial"):
        refused = f"the job is {job.state}: only failed and partial jobs can be retried"
        return ActionOutcome(job.state, job.state, refused=refused)
    if renders.is_deleted(conn, job.id):
        return ActionOutcome(job.state, job.state, refused="its render was deleted: create a new job")
    owner_limits.require(conn, job.owner, limits, **create.NEW_JOB)
    why_not = _explain_no_restart(conn, job)
    wakes = _replay_dead_letters(conn, job.id, actor, include_replayed=why_not is not None)
    if wakes:
        return ActionOutcome(job.state, jobs.lock(conn, job.id).state, tuple(wakes), replayed=len(wakes))
    if why_not is not None:
        due = tuple(Wake("keep", output_id) for output_id in deferral.make_due(conn, job.id))
        return ActionOutcome(job.state, job.state, due, refused=None if due else why_not)
    jobs.change_state(conn, job, "open", actor=actor, reason=RETRIED, check_after=deadline)
    entry = submissions.parse_fallback_chain(job)[0]
    first = submissions.plan(conn, ids.uuid7(), job.id, 0, entry, reason=RETRIED, actor=actor)
    return ActionOutcome(job.state, "open", (Wake("submit", first),))


def _explain_no_restart(conn: Connection, job: Job) -> str | None:
    if job.fallback_chain is None:
        return "not submitted by moorage; no dead letter can be replayed"
    if job.state == "partial" and not placeholders.is_placeholder_chosen(conn, job.id):
        return "it has published files; no dead letter can be replayed"
    return None


def _replay_dead_letters(conn: Connection, job_id: UUID, actor: str, *, include_replayed: bool) -> list[Wake]:
    """Replay a locked job's outputs; the placeholder, then predictions, only if no other output can be replayed."""
    closed = dead_letters.list_newest(conn, DeadLetterFilter("replayed", job_id=job_id), limit=MAX_DEAD_LETTERS)
    replayed = {letter.subject_id for letter in closed}
    letters = dead_letters.list_newest(conn, DeadLetterFilter(retryable=True, job_id=job_id), limit=MAX_DEAD_LETTERS)
    letters = [letter for letter in letters if include_replayed or letter.subject_id not in replayed]
    outputs = [letter for letter in letters if letter.subject == "output"]
    files = [letter for letter in outputs if letter.provider != placeholders.PROVIDER]
    predictions = [letter for letter in letters if letter.subject == "prediction"]
    wakes: list[Wake] = []
    for letter in (letter for group in (files, outputs, predictions) if not wakes for letter in group):
        # A refusal rolls back: its source is gone, or a later prediction was chosen. The dead letter stays open.
        with contextlib.suppress(Refused), conn.transaction():
            wake = replay_dead_letter(conn, letter.id, actor)
            wakes += [wake] if wake else []
    return wakes
