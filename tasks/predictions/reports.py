"""What a provider said, carried out on a locked job and prediction. Webhook and poll both come through here."""

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
from tasks.jobs import cancel, settle


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What became of a report: `ended` tells whether the prediction is over, `changed` whether it did anything."""

    changed: bool
    ended: bool
    reason: str
    wakes: list[Wake] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReportSource:
    """How a report was heard."""

    channel: Literal["webhook", "poll"]
    received_at: datetime
    actor: str
    asset_base: str
    output_life_seconds: float | None
    can_poll: bool = True  # the provider can be polled


def apply_report(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReportOutcome:
    """Carry out what a report means for a locked job and prediction."""
    is_chosen, has_render = job.chosen_id == prediction.id, renders.exists(conn, job.id)
    stands_in = job.placeholder and placeholders.is_placeholder_chosen(conn, job.id)
    situation = PredictionContext(prediction.state, is_chosen, job.state, has_render, source.can_poll, stands_in)
    verdict = lifecycle.on_report(report, situation)
    if isinstance(verdict, IgnoreReport):
        return ReportOutcome(False, prediction.state in TERMINAL_PREDICTION_STATES, verdict.reason)
    if isinstance(verdict, RecordStatus):
        predictions.record_raw_status(conn, prediction.id, to_storable(report.raw_status, 100))
        return ReportOutcome(True, False, f"still {to_storable(report.raw_status, 100)}")
    if isinstance(verdict, PollNow):
        return _fetch(conn, prediction, report)
    if isinstance(verdict, RefreshUrls):
        return _renew(conn, prediction, report, source)
    if isinstance(verdict, LateSuccess):
        reason = f"late: the job was {job.state} already"
        _end(conn, prediction, "succeeded", report, source, reason=reason)
        dead_letters.close_by_subject(conn, "prediction", prediction.id, reason=reason, actor=source.actor)
        return ReportOutcome(False, True, reason)
    if isinstance(verdict, ChoosePrediction):
        return _choose(conn, job, prediction, report, source)
    return _end_without_files(conn, job, prediction, report, verdict, source)


def compute_expiry(report: PredictionReport, received_at: datetime, life_seconds: float | None) -> datetime | None:
    """
    Return when a report's URLs die: as it says, else the provider's output life after completion.

    What was heard of is complete, so a provider whose clock runs ahead makes no URL live longer than from then.
    """
    if life_seconds is None:
        return report.expires_at
    latest = received_at + timedelta(seconds=life_seconds)
    if report.expires_at is not None:
        return min(report.expires_at, latest)
    return min(report.completed_at, received_at) + timedelta(seconds=life_seconds) if report.completed_at else latest


def _fetch(conn: Connection, prediction: Prediction, report: PredictionReport) -> ReportOutcome:
    """Have the prediction polled at once; one that is just being polled comes round again on the provider's clock."""
    word = to_storable(report.raw_status, 100)
    predictions.record_raw_status(conn, prediction.id, word)
    woken = predictions.make_due_by_id(conn, [prediction.id])
    return ReportOutcome(
        True, False, f"{word}: the whole answer is asked for", [Wake("poll", row_id) for row_id in woken]
    )


def _choose(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, heard: ReportSource
) -> ReportOutcome:
    """Take the files of the first success as the job's, each once, in document order."""
    _end(conn, prediction, "succeeded", report, heard, reason=None)
    dead_letters.close_by_subject(conn, "prediction", prediction.id, reason="a late success arrived", actor=heard.actor)
    jobs.change_state(
        conn, job, "keeping", actor=heard.actor, chosen_id=prediction.id, reason=f"{len(report.outputs)} files"
    )
    wakes = cancel.cancel_predictions(conn, job.id, reason="another prediction was chosen", actor=heard.actor)
    expires_at = compute_expiry(report, heard.received_at, heard.output_life_seconds)
    wakes += [wake for found in report.outputs for wake in _add(conn, job, prediction, found, expires_at, heard.actor)]
    moved = jobs.lock(conn, job.id)
    wakes += settle.settle_if_last(conn, moved, asset_base=heard.asset_base, actor=heard.actor)
    return ReportOutcome(True, True, f"chosen: {len(report.outputs)} files", wakes)


def _add(
    conn: Connection, job: Job, prediction: Prediction, found: OutputFile, expires_at: datetime | None, actor: str
) -> list[Wake]:
    output_id = ids.uuid7()
    is_new = outputs.add(
        conn,
        output_id,
        job_id=job.id,
        prediction_id=prediction.id,
        file=found,
        expires_at=None if found.data is not None else expires_at,
        actor=actor,
    )
    if not is_new:
        return []
    if found.problem is None:
        return [Wake("keep", output_id)]
    why = DeadLetterDecision("DOWNLOAD_FAILED", "DownloadRefused", found.problem, retryable=False)
    dead_letters.add(
        conn, "output", output_id, why, step="ingest", job_id=job.id, provider=prediction.provider, actor=actor
    )
    return []


def _renew(conn: Connection, prediction: Prediction, report: PredictionReport, heard: ReportSource) -> ReportOutcome:
    """Take fresh URLs of a later answer for files that still wait; paths it has not named before are not new files."""
    expires_at = compute_expiry(report, heard.received_at, heard.output_life_seconds)
    fresh = [f for f in report.outputs if f.url and not f.problem]
    renewed = sum(outputs.update_source_url(conn, prediction.id, found, expires_at) for found in fresh)
    if not renewed:
        return ReportOutcome(False, True, "duplicate: the prediction had succeeded")
    return ReportOutcome(True, True, f"renewed {renewed} URLs")


def _end_without_files(
    conn: Connection,
    job: Job,
    prediction: Prediction,
    report: PredictionReport,
    verdict: EndPrediction,
    heard: ReportSource,
) -> ReportOutcome:
    why = DeadLetterDecision(
        verdict.category, "PredictionLost", to_storable(verdict.reason), retryable=report.needs_fetch
    )
    _end(conn, prediction, verdict.state, report, heard, reason=why.reason, category=verdict.category)
    if verdict.state == "lost":  # files were made, and we did not get them
        dead_letters.add(
            conn,
            "prediction",
            prediction.id,
            why,
            step="ingest" if heard.channel == "webhook" else "poll",
            job_id=job.id,
            provider=prediction.provider,
            actor=heard.actor,
        )
    wakes = settle.advance(conn, job, why, actor=heard.actor)
    return ReportOutcome(True, True, f"{verdict.state}: {why.reason}", wakes)


def _end(
    conn: Connection,
    prediction: Prediction,
    state: str,
    report: PredictionReport,
    heard: ReportSource,
    *,
    reason: str | None,
    category: str | None = None,
) -> None:
    predictions.end(
        conn,
        prediction,
        state,
        ended_by=heard.channel,
        actor=heard.actor,
        category=category,
        reason=reason,
        raw_status=to_storable(report.raw_status, 100),
    )
