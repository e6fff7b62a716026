"""
Retrying a job that came to nothing, or not to all: its dead letters are replayed, else its chain starts again.

What was replayed once and died again is not replayed before that: a provider that has deleted its files for good would
else keep the chain from ever starting again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from db import dead_letters, jobs, placeholders, renders, submissions
from db.connection import Connection, Database
from db.dead_letters import DeadLetterFilter
from moorage.errors import Refused
from moorage.failpoints import failpoint
from moorage.model import DeadLetter, Job, JobState, Wake
from moorage.settings import Settings
from tasks.jobs import replay

REASON = "retried by the application"
MAX_DEAD_LETTERS = 1000  # dead letters of one job that are looked at


@dataclass(frozen=True, slots=True)
class RetryOutcome:
    """
    What became of a wish to try a job again.

    Args:
        wakes: to be sent, best after the answer; one that is dropped is sent again by dispatch.
        replayed: how many dead letters have another life; 0: the chain started again, or it was refused.
        refused: why nothing was done.
    """

    before: JobState
    after: JobState
    wakes: tuple[Wake, ...] = ()
    replayed: int = 0
    refused: str | None = None


def retry_job(database: Database, settings: Settings, job_id: UUID, actor: str) -> RetryOutcome:
    """
    Try a failed or partial job again, within MOORAGE_JOB_DEADLINE_SECONDS; what is published stays.

    Raises:
        LookupError: there is no such job.
        DatabaseUnavailable: nothing was done, or (CommitUncertain) nobody knows: the job tells.
    """
    deadline = timedelta(seconds=settings.job_deadline_seconds)
    outcome = database.run(lambda conn: _retry(conn, job_id, deadline, actor))
    failpoint("retry.after_commit")
    return outcome


def _retry(conn: Connection, job_id: UUID, deadline: timedelta, actor: str) -> RetryOutcome:
    job = jobs.lock(conn, job_id)
    if job.state not in ("failed", "partial"):
        return RetryOutcome(job.state, job.state, refused=f"the job is {job.state}: only what failed is tried again")
    if renders.is_deleted(conn, job.id):
        return RetryOutcome(job.state, job.state, refused="its render was deleted: ask for a new job")
    refused = _keeps_from_starting(conn, job)
    wakes = _replay(conn, job.id, actor, died_again=refused is not None)
    if wakes:
        return RetryOutcome(job.state, jobs.lock(conn, job.id).state, tuple(wakes), replayed=len(wakes))
    if refused is not None:
        return RetryOutcome(job.state, job.state, refused=refused)
    jobs.change_state(conn, job, "open", actor=actor, reason=REASON, check_after=deadline)
    first = submissions.plan(conn, job.id, 0, submissions.parse_fallback_chain(job)[0], reason=REASON, actor=actor)
    return RetryOutcome(job.state, "open", (Wake("submit", first),))


def _keeps_from_starting(conn: Connection, job: Job) -> str | None:
    """Return why a job's chain cannot start again; None: it can."""
    if job.chain is None:
        return "moorage did not start it, and nothing of it can be replayed"
    if job.state == "partial" and not placeholders.is_placeholder_chosen(conn, job.id):
        return "it has published files, and none of the others can be replayed"
    return None


def _replay(conn: Connection, job_id: UUID, actor: str, *, died_again: bool) -> list[Wake]:
    """Replay what can be of a locked job's files, with those that `died_again`; where that is none, its predictions."""
    before = dead_letters.list_newest(conn, DeadLetterFilter("replayed", job_id=job_id), limit=MAX_DEAD_LETTERS)
    replayed = {letter.subject_id for letter in before}
    found = dead_letters.list_newest(conn, DeadLetterFilter(retryable=True, job_id=job_id), limit=MAX_DEAD_LETTERS)
    letters = [letter for letter in found if died_again or letter.subject_id not in replayed]
    files = [letter for letter in letters if letter.subject == "output"]
    real = [letter for letter in files if letter.provider != placeholders.PROVIDER]
    tried = [letter for letter in letters if letter.subject == "prediction"]
    for some in (real, files, tried):
        if wakes := _replay_each(conn, some, actor):
            return wakes
    return []


def _replay_each(conn: Connection, letters: Sequence[DeadLetter], actor: str) -> list[Wake]:
    wakes = []
    for letter in letters:
        try:
            with conn.transaction():  # a refusal takes back what it had begun
                wake = replay.replay_dead_letter(conn, letter.id, actor)
        except Refused:
            continue  # its source is gone, or a later prediction's files were taken: the letter stays
        if wake is not None:
            wakes.append(wake)
    return wakes
