"""Settle a job: end of its last output, and publication of its render in the same transaction; reopen it."""

from uuid import UUID

from db import deferral, discarding, jobs, placeholders, placements, projects, renders
from db.connection import Connection
from moorage import lifecycle
from moorage.failpoints import failpoint
from moorage.lifecycle import OutputCounts, Settlement
from moorage.model import Job, Output, Wake
from moorage.retry_policy import DeadLetterDecision
from tasks.jobs import cancel, fallback, placeholder

NOT_NEEDED = "files of another prediction were published"
DISCARD_REASON = "partial results are discarded by policy"


def settle_if_last(
    conn: Connection, job: Job, *, asset_base: str, actor: str, counts: OutputCounts | None = None
) -> list[Wake]:
    """
    Settle a locked job if none of its outputs is waiting; returns wakes for discards or the next submission.

    The count must be its own statement after the lock, so that its snapshot contains every change the lock waited for:
    with lock and count in one statement, or without the lock, no worker settles the job. A job that is settled or not
    yet keeping is left unchanged. Where no output was stored, the fallback chain advances. `counts`: if the caller has
    counted.
    """
    if job.partial == "discard":
        deferral.end_incomplete_outputs(conn, job, actor)
        counts = None
    if job.state != "keeping":
        return []
    counts = counts or jobs.count_outputs(conn, job.id)
    if counts.waiting:
        return []
    shows_placeholder = counts.placeholders > 0 and renders.exists(conn, job.id)
    has_next_entry = shows_placeholder and fallback.find_next_entry(conn, job) is not None
    settlement = lifecycle.on_output_counts(counts, job.partial, has_next_entry=has_next_entry)
    if settlement is None:
        return []
    failpoint("settle.before_publish")
    discarded = discarding.mark_discarding(conn, job.id, DISCARD_REASON, actor) if settlement.discard_kept else []
    wakes = [Wake("discard", output_id) for output_id in discarded]
    if counts.others and settlement.publish and counts.kept and not settlement.discard_kept:
        deferral.cancel_others(conn, job.id, job.chosen_id, reason=NOT_NEEDED, actor=actor)
    if settlement.publish:
        _publish(conn, job, counts, settlement, asset_base, actor)
    elif settlement.state == "keeping":
        wakes += _choose_reserve(conn, job, counts, actor)
    else:
        wakes += fallback.advance_after_files(conn, job, _explain_no_files(conn, job.id, counts), actor=actor)
    failpoint("settle.after_publish")
    return wakes


def _choose_reserve(conn: Connection, job: Job, counts: OutputCounts, actor: str) -> list[Wake]:
    """Choose the prediction of a late success, whose files are attempted now; returns their wakes."""
    chosen_id = deferral.get_reserve(conn, job.id)
    reason = f"{_explain_no_files(conn, job.id, counts).reason}; those of a late success are used"
    jobs.change_state(conn, job, "keeping", actor=actor, reason=reason, chosen_id=chosen_id)
    return [Wake("keep", output_id) for output_id in deferral.resume(conn, job.id, chosen_id, actor)]


def _publish(
    conn: Connection, job: Job, counts: OutputCounts, settlement: Settlement, asset_base: str, actor: str
) -> None:
    project = projects.lock(conn, job.project) if job.project else None
    renders.publish(conn, job, actor)
    reason, chosen_id = None, None
    if settlement.state == "partial" and counts.kept and not settlement.discard_kept:
        reason = f"{counts.dead} of {counts.kept + counts.dead} files could not be kept"
    elif settlement.state == "partial":
        reason = placeholder.placeholder_reason(_explain_no_files(conn, job.id, counts).reason)
        existing = placeholders.get_placeholder(conn, job.id)
        chosen_id = existing[0] if existing else None
    jobs.change_state(conn, job, settlement.state, actor=actor, reason=reason, chosen_id=chosen_id)
    if project is not None:
        placements.place_files(conn, project, job, asset_base)


def _explain_no_files(conn: Connection, job_id: UUID, counts: OutputCounts) -> DeadLetterDecision:
    total = counts.kept + counts.dead + counts.foreign
    if counts.kept:
        reason = f"{counts.dead} of {total} files could not be kept; the rest is discarded by policy"
    elif total:
        reason = f"none of {total} files could be kept"
    else:  # the chosen prediction is the placeholder
        reason = placeholders.get_reason(conn, job_id) or "the fallback chain yielded no files"
        reason = reason if counts.placeholders else f"{reason}; the placeholder could not be kept"
    return DeadLetterDecision("DOWNLOAD_FAILED", "NothingKept", reason, retryable=True)


def reopen(conn: Connection, job: Job, output: Output, *, asset_base: str, actor: str) -> list[Wake]:
    """
    Add a kept output to a locked job that no longer waited for it: choose its prediction and settle again; returns
    wakes.

    With policy `discard` the job waits once more for the other deferred files: published are all or none.
    """
    reason = f"{output.path} could be stored after all"
    jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=output.prediction_id, reason=reason)
    wakes = cancel.cancel_predictions(conn, job.id, reason="files of an earlier prediction were stored", actor=actor)
    if job.partial == "discard":
        due = deferral.resume(conn, job.id, output.prediction_id, actor)
    else:
        due = deferral.make_due(conn, job.id)
    wakes += [Wake("keep", output_id) for output_id in due]
    return wakes + settle_if_last(conn, jobs.lock(conn, job.id), asset_base=asset_base, actor=actor)
