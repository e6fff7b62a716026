"""The end of a job: whoever ends its last output publishes it, in the same transaction, under the job's lock."""

from uuid import UUID

from db import chains, discards, jobs, projects, renders
from db.connect import Connection
from moorage import lifecycle
from moorage.failpoints import failpoint
from moorage.lifecycle import Counts, GiveUp, Settle
from moorage.model import Job, Wake
from tasks import chain, placeholder

BY_POLICY = "partial results are discarded by policy"


def if_last(conn: Connection, job: Job, *, asset_base: str, actor: str) -> list[Wake]:
    """
    Settle a locked job if none of its outputs waits any more; returns wakes for what is to be discarded or submitted.

    The count is a statement of its own after the lock, with a snapshot that sees every end the lock waited for. (Lock
    and count in one statement, or a count without the lock, was tried: then nobody settles.) A job that is settled, or
    not yet keeping, is left alone: its outputs may still end (objects that are discarded), its state is final. Where
    nothing was kept, the chain goes on.
    """
    if job.state != "keeping":
        return []
    counts = jobs.count(conn, job.id)
    if counts.waiting:
        return []
    shown = counts.placeholders > 0 and renders.exists(conn, job.id)
    more = shown and chain.next_entry(conn, job) is not None
    decision = lifecycle.on_counts(counts, job.partial, more=more)
    if decision is None:
        return []
    failpoint("settle.before_publish")
    discarded = discards.begin(conn, job.id, BY_POLICY, actor) if decision.discard_kept else []
    wakes = [Wake("discard", output_id) for output_id in discarded]
    if decision.publish:
        _publish(conn, job, counts, decision, asset_base, actor)
    else:
        wakes += chain.after_files(conn, job, _why_nothing(conn, job.id, counts), actor=actor)
    failpoint("settle.after_publish")
    return wakes


def _publish(conn: Connection, job: Job, counts: Counts, decision: Settle, asset_base: str, actor: str) -> None:
    project = projects.lock(conn, job.project_id) if job.project_id else None
    renders.publish(conn, job.id, actor)
    reason, chosen_id = None, None
    if decision.state == "partial" and counts.kept and not decision.discard_kept:
        reason = f"{counts.dead} of {counts.kept + counts.dead} files could not be kept"
    elif decision.state == "partial":
        reason = placeholder.reason(_why_nothing(conn, job.id, counts).reason)
        chosen_id = stands_in[0] if (stands_in := chains.placeholder(conn, job.id)) else None
    jobs.move(conn, job, decision.state, actor=actor, reason=reason, chosen_id=chosen_id)
    if project is not None:
        projects.place(conn, project, job.id, asset_base)


def _why_nothing(conn: Connection, job_id: UUID, counts: Counts) -> GiveUp:
    total = counts.kept + counts.dead
    if counts.kept:
        reason = f"{counts.dead} of {total} files could not be kept; the rest is discarded by policy"
    elif counts.dead:
        reason = f"none of {total} files could be kept"
    else:  # what was chosen is the placeholder
        reason = chains.why(conn, job_id) or "the chain brought nothing"
        reason = reason if counts.placeholders else f"{reason}; the placeholder could not be kept"
    return GiveUp("DOWNLOAD_FAILED", "NothingKept", reason, retryable=True)
