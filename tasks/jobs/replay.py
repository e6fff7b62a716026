"""Replaying and discarding dead letters: the one door out of a terminal state, taken under the job's lock."""

from datetime import timedelta
from uuid import UUID

from db import dead_letters, deliveries, discarding, jobs, notifications, outputs, placeholders, predictions, renders
from db.connection import Connection
from moorage.errors import Refused
from moorage.model import DeadLetter, Job, Wake
from moorage.transitions import TERMINAL_JOB_STATES

REPLAY_DEADLINE = timedelta(minutes=15)  # how long a replayed prediction is waited for


def replay_dead_letter(conn: Connection, dead_letter_id: UUID, actor: str) -> Wake | None:
    """
    Give the row of a dead letter another life, on the same path as its first; returns its wake.

    Raises:
        Refused: it is not open, or what it would be made from is gone; the message says which.
    """
    letter = dead_letters.get(conn, dead_letter_id)
    if letter is None:
        raise Refused(f"there is no dead letter {dead_letter_id}", status=404)
    job = jobs.lock(conn, letter.job_id) if letter.job_id and letter.subject in ("output", "prediction") else None
    wake = _revive(conn, letter, job, actor)
    if not dead_letters.close(conn, dead_letter_id, "replayed", actor):
        raise Refused(f"dead letter {dead_letter_id} is {letter.state} already", status=409)
    return wake


def _revive(conn: Connection, letter: DeadLetter, job: Job | None, actor: str) -> Wake | None:
    if letter.subject == "delivery":
        if not deliveries.replay(conn, letter.subject_id, actor):
            raise Refused("the body of this delivery was purged, or it is not dead any more", status=409)
        return Wake("ingest", letter.subject_id)
    if letter.subject == "notice":
        if not notifications.replay(conn, letter.subject_id, actor):
            raise Refused("this notice is not dead any more", status=409)
        return Wake("notify", letter.subject_id)
    if letter.subject == "prediction" and job is not None and job.state == "cancelled":
        raise Refused("the job is cancelled: nobody waits for its predictions", status=409)
    if letter.subject == "prediction" and job is not None:
        if not predictions.replay(conn, letter.subject_id, deadline=REPLAY_DEADLINE, actor=actor):
            raise Refused("this prediction is not lost any more, or its provider never named it", status=409)
        if job.state == "failed":
            jobs.change_state(
                conn, job, "open", actor=actor, reason="reopened by a replay", check_after=REPLAY_DEADLINE
            )
        return Wake("poll", letter.subject_id)
    if letter.subject == "output" and job is not None:
        return _revive_output(conn, letter, job, actor)
    raise Refused("a message that named no row cannot be replayed: discard it", status=409)


def _revive_output(conn: Connection, letter: DeadLetter, job: Job, actor: str) -> Wake:
    if job.state == "open":  # it counts no outputs: what is kept meanwhile would be published by nobody
        raise Refused("the job awaits another prediction: replay this file when that has ended", status=409)
    if renders.is_deleted(conn, job.id):
        raise Refused("the render of this file was deleted by retention: ask for a new job", status=409)
    output = outputs.get(conn, letter.subject_id)
    if output is None:
        raise Refused("this file is gone", status=409)
    if output.prediction_id != job.chosen_id and not placeholders.is_placeholder_chosen(conn, job.id):
        raise Refused("the job has taken the files of a later prediction instead of this one's", status=409)
    if discarding.has_discarded_files(
        conn, output.prediction_id
    ):  # all or nothing: one file more cannot make the job whole
        raise Refused("the other files of this job were discarded by its policy: generate them again", status=409)
    if not outputs.replay(conn, letter.subject_id, actor):
        raise Refused("the source of this file is gone, or it is not dead any more", status=409)
    if job.state in TERMINAL_JOB_STATES:
        if job.state in ("succeeded", "cancelled"):
            raise Refused(f"the job is {job.state}: it is not opened again", status=409)
        reason = "reopened by a replay"
        jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=output.prediction_id, reason=reason)
    elif output.prediction_id != job.chosen_id:
        raise Refused("the job keeps its placeholder just now: replay this file when that has ended", status=409)
    return Wake("keep", letter.subject_id)


def discard_dead_letter(conn: Connection, dead_letter_id: UUID, actor: str) -> None:
    """Close a dead letter for good; its row stays as it is. Raises Refused when it is not open."""
    if not dead_letters.close(conn, dead_letter_id, "discarded", actor):
        raise Refused(f"dead letter {dead_letter_id} is not open", status=409)
