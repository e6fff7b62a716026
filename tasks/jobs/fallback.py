"""The fallback chain: what follows a prediction that ended without files."""

from dataclasses import replace

from db import jobs, placeholders, predictions, submissions
from db.connection import Connection, current_time
from moorage import ids, lifecycle
from moorage.lifecycle import FallbackState
from moorage.model import FallbackEntry, Job, Wake
from moorage.retry_policy import DeadLetterDecision
from tasks.jobs import placeholder


def advance(conn: Connection, job: Job, decision: DeadLetterDecision, *, actor: str) -> list[Wake]:
    """
    Advance the chain of a locked open job after one of its predictions ended without files; returns wakes.

    Does nothing while another prediction is awaited. Otherwise plans the next entry. After the last entry, or past the
    job's deadline, adds the placeholder if the job requested one, else fails the job. A job that is not open is left
    unchanged: it has files or has ended.
    """
    return advance_after_files(conn, job, decision, actor=actor) if job.state == "open" else []


def find_next_entry(conn: Connection, job: Job) -> tuple[int, FallbackEntry] | None:
    """Return the next entry of a locked job and its index; None after the last one and past the deadline."""
    chain = submissions.parse_fallback_chain(job)
    index = submissions.get_next_entry_index(conn, job.id) if chain else 0
    if index >= len(chain) or current_time(conn) >= job.deadline_at:
        return None
    return index, chain[index]


def advance_after_files(conn: Connection, job: Job, decision: DeadLetterDecision, *, actor: str) -> list[Wake]:
    """Advance the chain of a locked job that is open, or keeping with none of its outputs stored; returns wakes."""
    entry, existing = find_next_entry(conn, job), placeholders.get_placeholder(conn, job.id)
    awaited = len(predictions.list_awaited(conn, job.id))
    state = FallbackState(awaited, entry[0] if entry else None, placeholder.placeholder_state(job, existing))
    action = lifecycle.on_no_files(state)
    if action == "fail":
        jobs.change_state(conn, job, "failed", actor=actor, category=decision.category, reason=decision.reason)
        return []
    if action == "show placeholder" and existing is not None:  # published before the job was reopened
        reason = placeholder.placeholder_reason(decision.reason)
        jobs.change_state(conn, job, "partial", actor=actor, chosen_id=existing[0], reason=reason)
        return []
    if job.state != "open":  # keeps its present deadline
        remaining = job.deadline_at - current_time(conn)
        jobs.change_state(conn, job, "open", actor=actor, reason=decision.reason, check_after=remaining)
        job = replace(job, state="open")
    if action == "placeholder":
        return placeholder.choose_placeholder(conn, job, decision, actor=actor)
    if entry is None or action == "await":
        return []
    # `submit` passes predictions of synchronous providers to `generate`.
    return [Wake("submit", submissions.plan(conn, ids.uuid7(), job.id, *entry, reason=decision.reason, actor=actor))]
