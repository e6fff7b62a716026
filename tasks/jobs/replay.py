"""Replays and discards dead letters. A replay is the only transition out of a terminal state; it locks the job."""

from datetime import timedelta
from uuid import UUID

from db import dead_letters, deliveries, discarding, jobs, notifications, outputs, placeholders, predictions, renders
from db.connection import Connection
from moorage.errors import Refused
from moorage.model import DeadLetter, Job, Wake
from moorage.transitions import TERMINAL_JOB_STATES

REOPENED = "reopened by a replay"
REPLAY_DEADLINE = timedelta(minutes=15)  # how long a replayed prediction is waited for


def replay_dead_letter(conn: Connection, dead_letter_id: UUID, actor: str) -> Wake | None:
    """Reset the row of an open dead letter, so that its step runs again. Raises Refused if that is impossible."""
    letter = dead_letters.get(conn, dead_letter_id)
    if letter is None:
        raise Refused(f"no dead letter {dead_letter_id}", status=404)
    job = jobs.lock(conn, letter.job_id) if letter.job_id and letter.subject in ("output", "prediction") else None
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
    if letter.subject == "prediction" and job is not None and job.state == "cancelled":
        raise Refused("job is cancelled; its predictions cannot be replayed", status=409)
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
    # All or nothing: one more file cannot complete the job.
    if discarding.has_discarded_files(conn, output.prediction_id):
        raise Refused("other files of this job were discarded by its `partial` policy; create a new job", status=409)
    if not outputs.replay(conn, letter.subject_id, actor):
        raise Refused("output is no longer dead, or its source was purged", status=409)
    if job.state in TERMINAL_JOB_STATES:
        if job.state == "cancelled":
            raise Refused("job is cancelled and cannot be reopened", status=409)
        jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=output.prediction_id, reason=REOPENED)
    elif output.prediction_id != job.chosen_id:
        raise Refused("placeholder upload in progress; retry later", status=409)
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
