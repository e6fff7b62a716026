"""What follows a try that brought nothing: the next entry of the job's chain, its placeholder, else its failure."""

from dataclasses import replace

from db import chains, jobs, predictions, submits
from db.connect import Connection, now
from moorage import lifecycle
from moorage.lifecycle import GiveUp, Prospect
from moorage.model import Entry, Job, Wake
from tasks import placeholder


def go_on(conn: Connection, job: Job, why: GiveUp, *, actor: str) -> list[Wake]:
    """
    Go on with a locked open job one of whose predictions has just ended without files; returns wakes.

    Nothing happens while another prediction is still awaited. Otherwise the next entry of the chain is planned; after
    the last, or past the job's deadline, it gets its placeholder if it asked for one, else it fails for the reason
    given. A job that is not open is left alone: it has files, or has ended.
    """
    return _follow(conn, job, why, actor) if job.state == "open" else []


def after_files(conn: Connection, job: Job, why: GiveUp, *, actor: str) -> list[Wake]:
    """Go on in the same way with a locked keeping job none of whose chosen files could be kept; returns wakes."""
    return _follow(conn, job, why, actor)


def next_entry(conn: Connection, job: Job) -> tuple[int, Entry] | None:
    """Return the entry of a locked job's chain that comes next; None: it was the last, or the deadline has passed."""
    chain = submits.entries(job)
    following = submits.following(conn, job.id) if chain else 0
    if following >= len(chain) or now(conn) >= job.deadline_at:
        return None
    return following, chain[following]


def _follow(conn: Connection, job: Job, why: GiveUp, actor: str) -> list[Wake]:
    following, stands_in = next_entry(conn, job), chains.placeholder(conn, job.id)
    awaited = len(predictions.awaited(conn, job.id))
    prospect = Prospect(awaited, following[0] if following else None, placeholder.prospect(job, stands_in))
    what = lifecycle.after_nothing(prospect)
    if what == "fail":
        jobs.move(conn, job, "failed", actor=actor, category=why.category, reason=why.reason)
        return []
    if what == "show placeholder" and stands_in is not None:  # published before the job was opened again
        reason = placeholder.reason(why.reason)
        jobs.move(conn, job, "partial", actor=actor, chosen_id=stands_in[0], reason=reason)
        return []
    opened = _opened(conn, job, why, actor)
    if what == "placeholder":
        return placeholder.choose(conn, opened, why, actor=actor)
    if following is None or what == "await":
        return []
    # A provider that answers with the files has a step of its own: `submit` passes it on.
    return [Wake("submit", submits.plan(conn, job.id, *following, reason=why.reason, actor=actor))]


def _opened(conn: Connection, job: Job, why: GiveUp, actor: str) -> Job:
    """Open a keeping job again, with the deadline it has."""
    if job.state == "open":
        return job
    jobs.move(conn, job, "open", actor=actor, reason=why.reason, check_after=job.deadline_at - now(conn))
    return replace(job, state="open")
