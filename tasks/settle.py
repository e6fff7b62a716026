"""The end of a job: whoever ends its last output publishes it, in the same transaction, under the job's lock."""

from db import jobs, outputs, projects, renders
from db.connect import Connection
from moorage import lifecycle
from moorage.failpoints import failpoint
from moorage.lifecycle import Counts, GiveUp, Settle
from moorage.model import Job, Wake


def if_last(conn: Connection, job: Job, *, asset_base: str, actor: str) -> list[Wake]:
    """
    Settle a locked job if none of its outputs waits any more; returns wakes for what is to be discarded.

    The count is a statement of its own after the lock, with a snapshot that sees every end the lock waited for. (Lock
    and count in one statement, or a count without the lock, was tried: then nobody settles.) A job that is settled, or
    not yet keeping, is left alone: its outputs may still end (objects that are discarded), its state is final.
    """
    if job.state != "keeping":
        return []
    counts = jobs.count(conn, job.id)
    decision = lifecycle.on_counts(counts, job.partial)
    if decision is None:
        return []
    failpoint("settle.before_publish")
    project = projects.lock(conn, job.project_id) if decision.publish and job.project_id else None
    if decision.publish:
        renders.publish(conn, job.id, actor)
    discarded = outputs.discard_kept(conn, job.id, actor) if decision.discard_kept else []
    category, reason = _why(counts, decision)
    jobs.move(conn, job, decision.state, actor=actor, category=category, reason=reason)
    if project is not None:
        projects.place(conn, project, job.id, asset_base)
    failpoint("settle.after_publish")
    return [Wake("discard", output_id) for output_id in discarded]


def _why(counts: Counts, decision: Settle) -> tuple[str | None, str | None]:
    total = counts.kept + counts.dead
    if decision.discard_kept:
        return "DOWNLOAD_FAILED", f"{counts.dead} of {total} files could not be kept; the rest is discarded by policy"
    if decision.state == "failed":
        return "DOWNLOAD_FAILED", f"none of {total} files could be kept"
    if decision.state == "partial":
        return None, f"{counts.dead} of {total} files could not be kept"
    return None, None


def fail_if_unawaited(conn: Connection, job: Job, *, awaited: bool, why: GiveUp, actor: str) -> None:
    """Fail a locked open job whose last awaited prediction brought no files."""
    if job.state == "open" and not awaited:
        jobs.move(conn, job, "failed", actor=actor, category=why.category, reason=why.reason)
