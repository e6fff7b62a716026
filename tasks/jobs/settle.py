"""The end of a job: whoever ends its last output publishes it, in the same transaction, under the job's lock."""

from dataclasses import replace
from uuid import UUID

from db import discarding, jobs, placeholders, predictions, projects, renders, submissions
from db.connection import Connection, current_time
from moorage import lifecycle
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision, FallbackState, OutputCounts, Settlement
from moorage.model import FallbackEntry, Job, Wake
from tasks.jobs import placeholder

BY_POLICY = "partial results are discarded by policy"


def settle_if_last(conn: Connection, job: Job, *, asset_base: str, actor: str) -> list[Wake]:
    """
    Settle a locked job if none of its outputs waits any more; returns wakes for what is to be discarded or submitted.

    The count is a statement of its own after the lock, with a snapshot that sees every end the lock waited for. (Lock
    and count in one statement, or a count without the lock, was tried: then nobody settles.) A job that is settled, or
    not yet keeping, is left alone: its outputs may still end (objects that are discarded), its state is final. Where
    nothing was kept, the chain goes on.
    """
    if job.state != "keeping":
        return []
    counts = jobs.count_outputs(conn, job.id)
    if counts.waiting:
        return []
    shown = counts.placeholders > 0 and renders.exists(conn, job.id)
    more = shown and find_next_entry(conn, job) is not None
    decision = lifecycle.on_output_counts(counts, job.partial, has_next_entry=more)
    if decision is None:
        return []
    failpoint("settle.before_publish")
    discarded = discarding.mark_discarding(conn, job.id, BY_POLICY, actor) if decision.discard_kept else []
    wakes = [Wake("discard", output_id) for output_id in discarded]
    if decision.publish:
        _publish(conn, job, counts, decision, asset_base, actor)
    else:
        wakes += advance_after_files(conn, job, _why_nothing(conn, job.id, counts), actor=actor)
    failpoint("settle.after_publish")
    return wakes


def _publish(
    conn: Connection, job: Job, counts: OutputCounts, decision: Settlement, asset_base: str, actor: str
) -> None:
    project = projects.lock(conn, job.project_id) if job.project_id else None
    renders.publish(conn, job.id, actor)
    reason, chosen_id = None, None
    if decision.state == "partial" and counts.kept and not decision.discard_kept:
        reason = f"{counts.dead} of {counts.kept + counts.dead} files could not be kept"
    elif decision.state == "partial":
        reason = placeholder.placeholder_reason(_why_nothing(conn, job.id, counts).reason)
        chosen_id = stands_in[0] if (stands_in := placeholders.get_placeholder(conn, job.id)) else None
    jobs.change_state(conn, job, decision.state, actor=actor, reason=reason, chosen_id=chosen_id)
    if project is not None:
        projects.place_files(conn, project, job.id, asset_base)


def _why_nothing(conn: Connection, job_id: UUID, counts: OutputCounts) -> DeadLetterDecision:
    total = counts.kept + counts.dead
    if counts.kept:
        reason = f"{counts.dead} of {total} files could not be kept; the rest is discarded by policy"
    elif counts.dead:
        reason = f"none of {total} files could be kept"
    else:  # what was chosen is the placeholder
        reason = placeholders.get_reason(conn, job_id) or "the chain brought nothing"
        reason = reason if counts.placeholders else f"{reason}; the placeholder could not be kept"
    return DeadLetterDecision("DOWNLOAD_FAILED", "NothingKept", reason, retryable=True)


def advance(conn: Connection, job: Job, why: DeadLetterDecision, *, actor: str) -> list[Wake]:
    """
    Go on with a locked open job one of whose predictions has just ended without files; returns wakes.

    Nothing happens while another prediction is still awaited. Otherwise the next entry of the chain is planned; after
    the last, or past the job's deadline, it gets its placeholder if it asked for one, else it fails for the reason
    given. A job that is not open is left alone: it has files, or has ended.
    """
    return _follow(conn, job, why, actor) if job.state == "open" else []


def advance_after_files(conn: Connection, job: Job, why: DeadLetterDecision, *, actor: str) -> list[Wake]:
    """Go on in the same way with a locked keeping job none of whose chosen files could be kept; returns wakes."""
    return _follow(conn, job, why, actor)


def find_next_entry(conn: Connection, job: Job) -> tuple[int, FallbackEntry] | None:
    """Return the entry of a locked job's chain that comes next; None: it was the last, or the deadline has passed."""
    chain = submissions.parse_fallback_chain(job)
    following = submissions.get_next_entry_index(conn, job.id) if chain else 0
    if following >= len(chain) or current_time(conn) >= job.deadline_at:
        return None
    return following, chain[following]


def _follow(conn: Connection, job: Job, why: DeadLetterDecision, actor: str) -> list[Wake]:
    following, stands_in = find_next_entry(conn, job), placeholders.get_placeholder(conn, job.id)
    awaited = len(predictions.list_awaited(conn, job.id))
    prospect = FallbackState(
        awaited, following[0] if following else None, placeholder.placeholder_state(job, stands_in)
    )
    what = lifecycle.on_no_files(prospect)
    if what == "fail":
        jobs.change_state(conn, job, "failed", actor=actor, category=why.category, reason=why.reason)
        return []
    if what == "show placeholder" and stands_in is not None:  # published before the job was opened again
        reason = placeholder.placeholder_reason(why.reason)
        jobs.change_state(conn, job, "partial", actor=actor, chosen_id=stands_in[0], reason=reason)
        return []
    opened = _opened(conn, job, why, actor)
    if what == "placeholder":
        return placeholder.choose_placeholder(conn, opened, why, actor=actor)
    if following is None or what == "await":
        return []
    # A provider that answers with the files has a step of its own: `submit` passes it on.
    return [Wake("submit", submissions.plan(conn, job.id, *following, reason=why.reason, actor=actor))]


def _opened(conn: Connection, job: Job, why: DeadLetterDecision, actor: str) -> Job:
    """Open a keeping job again, with the deadline it has."""
    if job.state == "open":
        return job
    jobs.change_state(
        conn, job, "open", actor=actor, reason=why.reason, check_after=job.deadline_at - current_time(conn)
    )
    return replace(job, state="open")
