"""
Retry a failed or partial job: replay its dead letters, otherwise restart its fallback chain.

Files that are still attempted although their job has ended are attempted at once, if neither is possible.

Dead letters that failed again after a replay are not replayed if the chain can restart: otherwise a provider that has
deleted its files would prevent every restart.
"""

import contextlib
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from db import dead_letters, deferral, jobs, owner_use, placeholders, renders, submissions
from db.connection import Connection, Database
from db.dead_letters import DeadLetterFilter
from moorage.errors import Refused
from moorage.failpoints import failpoint
from moorage.model import Job, Wake
from moorage.settings import Settings
from tasks.jobs import create, replay
from tasks.jobs.cancel import ActionOutcome

REASON = "retried by the application"
MAX_DEAD_LETTERS = 1000  # read per job


def retry_job(
    database: Database,
    settings: Settings,
    job_id: UUID,
    actor: str,
    limits: Mapping[str, int] = create.NO_LIMITS,
) -> ActionOutcome:
    """
    Retry a failed or partial job with a new deadline; a published render remains.

    `limits`: of the owner. Raises LookupError, OwnerLimitReached.
    """
    deadline = timedelta(seconds=settings.job_deadline_seconds)
    outcome = database.run(lambda conn: _retry(conn, job_id, deadline, actor, limits))
    failpoint("retry.after_commit")
    return outcome


def _retry(conn: Connection, job_id: UUID, deadline: timedelta, actor: str, limits: Mapping[str, int]) -> ActionOutcome:
    job = jobs.lock(conn, job_id)
    if job.state not in ("failed", "partial"):
        refused = f"the job is {job.state}: only failed and partial jobs can be retried"
        return ActionOutcome(job.state, job.state, refused=refused)
    if renders.is_deleted(conn, job.id):
        return ActionOutcome(job.state, job.state, refused="its render was deleted: create a new job")
    owner_use.require(conn, job.owner, limits, **create.NEW_JOB)
    why_not = _explain_no_restart(conn, job)
    wakes = _replay_dead_letters(conn, job.id, actor, include_replayed=why_not is not None)
    if wakes:
        return ActionOutcome(job.state, jobs.lock(conn, job.id).state, tuple(wakes), replayed=len(wakes))
    if why_not is not None:
        due = tuple(Wake("keep", output_id) for output_id in deferral.make_due(conn, job.id))
        return ActionOutcome(job.state, job.state, due, refused=None if due else why_not)
    jobs.change_state(conn, job, "open", actor=actor, reason=REASON, check_after=deadline)
    first = submissions.plan(conn, job.id, 0, submissions.parse_fallback_chain(job)[0], reason=REASON, actor=actor)
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
            wake = replay.replay_dead_letter(conn, letter.id, actor)
            wakes += [wake] if wake else []
    return wakes
