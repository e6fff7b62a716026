"""Apply a provider's report, from a webhook or a poll, to its locked job and prediction."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from db import dead_letters, jobs, outputs, placeholders, predictions, renders
from db.connection import Connection
from moorage import ids, lifecycle
from moorage.lifecycle import (
    ChoosePrediction,
    DeadLetterDecision,
    EndPrediction,
    IgnoreReport,
    LateSuccess,
    PollNow,
    PredictionContext,
    RecordStatus,
    RefreshUrls,
)
from moorage.model import Job, Prediction, Wake
from moorage.provider_types import OutputFile, PredictionReport
from moorage.text import to_storable
from moorage.transitions import TERMINAL_PREDICTION_STATES
from tasks.jobs import cancel, fallback, settle


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """The effect of a report; `ended`: the prediction is in a terminal state."""

    changed: bool
    ended: bool
    reason: str
    wakes: list[Wake] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReportSource:
    channel: Literal["webhook", "poll"]
    received_at: datetime
    actor: str
    asset_base: str
    output_life_seconds: float | None
    can_poll: bool = True


def apply_report(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReportOutcome:
    is_chosen, has_render = job.chosen_id == prediction.id, renders.exists(conn, job.id)
    has_placeholder = job.placeholder and placeholders.is_placeholder_chosen(conn, job.id)
    ctx = PredictionContext(prediction.state, is_chosen, job.state, has_render, source.can_poll, has_placeholder)
    decision = lifecycle.on_report(report, ctx)
    if isinstance(decision, IgnoreReport):
        return ReportOutcome(False, prediction.state in TERMINAL_PREDICTION_STATES, decision.reason)
    if isinstance(decision, RecordStatus):
        predictions.record_raw_status(conn, prediction.id, to_storable(report.raw_status, 100))
        return ReportOutcome(True, False, f"still {to_storable(report.raw_status, 100)}")
    if isinstance(decision, PollNow):
        return _poll_now(conn, prediction, report)
    if isinstance(decision, RefreshUrls):
        return _refresh_urls(conn, prediction, report, source)
    if isinstance(decision, LateSuccess):
        reason = f"late: the job was {job.state} already"
        _end(conn, prediction, "succeeded", report, source, reason=reason)
        dead_letters.close_by_subject(conn, "prediction", prediction.id, reason=reason, actor=source.actor)
        return ReportOutcome(False, True, reason)
    if isinstance(decision, ChoosePrediction):
        return _choose(conn, job, prediction, report, source)
    return _end_without_files(conn, job, prediction, report, decision, source)


def compute_expiry(report: PredictionReport, received_at: datetime, life_seconds: float | None) -> datetime | None:
    """
    Return when a report's URLs expire: as stated in it, else the provider's output life after completion.

    Completion is at the latest when the report was received, so that a provider's fast clock does not extend the life.
    """
    if life_seconds is None:
        return report.expires_at
    latest = received_at + timedelta(seconds=life_seconds)
    if report.expires_at is not None:
        return min(report.expires_at, latest)
    return min(report.completed_at, received_at) + timedelta(seconds=life_seconds) if report.completed_at else latest


def _poll_now(conn: Connection, prediction: Prediction, report: PredictionReport) -> ReportOutcome:
    """Make the prediction due; a poll that is running is repeated after the provider's interval."""
    status = to_storable(report.raw_status, 100)
    predictions.record_raw_status(conn, prediction.id, status)
    wakes = [Wake("poll", row_id) for row_id in predictions.make_due_by_id(conn, [prediction.id])]
    return ReportOutcome(True, False, f"{status}: polling for the complete response", wakes)


def _choose(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReportOutcome:
    actor, reason = source.actor, f"{len(report.outputs)} files"
    _end(conn, prediction, "succeeded", report, source, reason=None)
    dead_letters.close_by_subject(conn, "prediction", prediction.id, reason="a late success arrived", actor=actor)
    jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=prediction.id, reason=reason)
    wakes = cancel.cancel_predictions(conn, job.id, reason="another prediction was chosen", actor=actor)
    expires_at = compute_expiry(report, source.received_at, source.output_life_seconds)
    for file in report.outputs:
        wakes += _add_output(conn, job, prediction, file, expires_at, actor)
    job = jobs.lock(conn, job.id)
    wakes += settle.settle_if_last(conn, job, asset_base=source.asset_base, actor=actor)
    return ReportOutcome(True, True, f"chosen: {reason}", wakes)


def _add_output(
    conn: Connection, job: Job, prediction: Prediction, file: OutputFile, expires_at: datetime | None, actor: str
) -> list[Wake]:
    output_id = ids.uuid7()
    is_new = outputs.add(
        conn,
        output_id,
        job_id=job.id,
        prediction_id=prediction.id,
        file=file,
        expires_at=None if file.data is not None else expires_at,
        actor=actor,
    )
    if not is_new:
        return []
    if file.problem is None:
        return [Wake("keep", output_id)]
    decision = DeadLetterDecision("DOWNLOAD_FAILED", "DownloadRefused", file.problem, retryable=False)
    dead_letters.add(
        conn, "output", output_id, decision, step="ingest", job_id=job.id, provider=prediction.provider, actor=actor
    )
    return []


def _refresh_urls(
    conn: Connection, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReportOutcome:
    """Replace the URLs of waiting outputs by those of a later report; new paths in it are not new outputs."""
    expires_at = compute_expiry(report, source.received_at, source.output_life_seconds)
    files = [file for file in report.outputs if file.url and not file.problem]
    count = sum(outputs.update_source_url(conn, prediction.id, file, expires_at) for file in files)
    if not count:
        return ReportOutcome(False, True, "duplicate: the prediction had succeeded")
    return ReportOutcome(True, True, f"renewed {count} URLs")


def _end_without_files(
    conn: Connection,
    job: Job,
    prediction: Prediction,
    report: PredictionReport,
    end: EndPrediction,
    source: ReportSource,
) -> ReportOutcome:
    reason = to_storable(end.reason)
    decision = DeadLetterDecision(end.category, "PredictionLost", reason, retryable=report.needs_fetch)
    _end(conn, prediction, end.state, report, source, reason=reason, category=end.category)
    if end.state == "lost":  # the provider created files that were not received
        dead_letters.add(
            conn,
            "prediction",
            prediction.id,
            decision,
            step="ingest" if source.channel == "webhook" else "poll",
            job_id=job.id,
            provider=prediction.provider,
            actor=source.actor,
        )
    wakes = fallback.advance(conn, job, decision, actor=source.actor)
    return ReportOutcome(True, True, f"{end.state}: {reason}", wakes)


def _end(
    conn: Connection,
    prediction: Prediction,
    state: str,
    report: PredictionReport,
    source: ReportSource,
    *,
    reason: str | None,
    category: str | None = None,
) -> None:
    predictions.end(
        conn,
        prediction,
        state,
        ended_by=source.channel,
        actor=source.actor,
        category=category,
        reason=reason,
        raw_status=to_storable(report.raw_status, 100),
    )
