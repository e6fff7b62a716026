"""Apply a provider's report, from a webhook or a poll, to its locked job and prediction."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from db import dead_letters, jobs, outputs, placeholders, predictions, renders, submissions
from db.connection import Connection
from moorage import ids, lifecycle, logs
from moorage.lifecycle import EndPrediction, PredictionContext
from moorage.model import Job, Prediction, Wake
from moorage.provider_types import OutputFile, PredictionReport
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable
from moorage.transitions import TERMINAL_PREDICTION_STATES
from providers import output_files
from tasks.jobs import cancel, fallback, settle

WITHOUT_FILES = " without files"  # ends the recorded status of a success that named none
ASK_AGAIN_SECONDS = 10.0  # after a poll that returned such a success


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """The effect of a report; `ended`: the prediction is in a terminal state; `poll_seconds`: when to poll again."""

    changed: bool
    ended: bool
    reason: str
    wakes: list[Wake] = field(default_factory=list)
    poll_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ReportSource:
    channel: Literal["webhook", "poll"]
    received_at: datetime
    actor: str
    asset_base: str
    output_life_seconds: float | None
    can_poll: bool = True


@dataclass(frozen=True, slots=True)
class _Received:
    """A report with the locked rows that it is applied to."""

    conn: Connection
    job: Job
    prediction: Prediction
    report: PredictionReport
    source: ReportSource

    @property
    def raw_status(self) -> str:
        report, raw_status = self.report, to_storable(self.report.raw_status, 100)
        is_without_files = report.status == "succeeded" and not report.outputs and not report.needs_fetch
        return raw_status + WITHOUT_FILES if is_without_files else raw_status

    @property
    def expires_at(self) -> datetime | None:
        return compute_expiry(self.report, self.source.received_at, self.source.output_life_seconds)

    def end_prediction(self, state: str, *, reason: str | None, category: str | None = None) -> None:
        conn, row, raw, by, actor = self.conn, self.prediction, self.raw_status, self.source.channel, self.source.actor
        predictions.end(conn, row, state, ended_by=by, actor=actor, category=category, reason=reason, raw_status=raw)


def apply_report(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReportOutcome:
    is_chosen, has_render = job.chosen_id == prediction.id, renders.exists(conn, job.id)
    has_placeholder = job.placeholder and placeholders.is_placeholder_chosen(conn, job.id)
    was_without_files = (prediction.raw_status or "").endswith(WITHOUT_FILES)
    ctx = PredictionContext(
        prediction.state, is_chosen, job.state, has_render, source.can_poll, has_placeholder, was_without_files
    )
    entry = submissions.get_entry(job, prediction)
    report = output_files.drop_inputs(report, entry.input if entry else None)
    received = _Received(conn, job, prediction, report, source)
    match lifecycle.on_report(report, ctx):
        case lifecycle.IgnoreReport(reason):
            return ReportOutcome(False, prediction.state in TERMINAL_PREDICTION_STATES, reason)
        case lifecycle.RecordStatus():
            predictions.record_raw_status(conn, prediction.id, received.raw_status)
            return ReportOutcome(True, False, f"still {received.raw_status}")
        case lifecycle.PollNow():
            return _poll_now(received)
        case lifecycle.PollRetry():
            return _ask_again(received)
        case lifecycle.RefreshUrls():
            return _refresh_urls(received)
        case lifecycle.LateSuccess():
            reason = f"late: the job was {job.state} already"
            received.end_prediction("succeeded", reason=reason)
            dead_letters.close_by_subject(conn, "prediction", prediction.id, reason=reason, actor=source.actor)
            return ReportOutcome(False, True, reason)
        case lifecycle.ChoosePrediction():
            return _choose(received)
        case EndPrediction() as end:
            return _end_without_files(received, end)


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


def _poll_now(received: _Received) -> ReportOutcome:
    """Make the prediction due; a poll that is running is repeated after the provider's interval."""
    conn, prediction_id = received.conn, received.prediction.id
    predictions.record_raw_status(conn, prediction_id, received.raw_status)
    wakes = [Wake("poll", row_id) for row_id in predictions.make_due_by_id(conn, [prediction_id])]
    return ReportOutcome(True, False, f"{received.raw_status}: polling for the complete response", wakes)


def _ask_again(received: _Received) -> ReportOutcome:
    """Poll at once after a webhook, a little later after a poll."""
    if received.source.channel == "webhook":
        return _poll_now(received)
    predictions.record_raw_status(received.conn, received.prediction.id, received.raw_status)
    return ReportOutcome(True, False, f"{received.raw_status}: asking again", poll_seconds=ASK_AGAIN_SECONDS)


def _choose(received: _Received) -> ReportOutcome:
    conn, job, prediction, source = received.conn, received.job, received.prediction, received.source
    actor, reason = source.actor, f"{len(received.report.outputs)} files"
    received.end_prediction("succeeded", reason=None)
    dead_letters.close_by_subject(conn, "prediction", prediction.id, reason="a late success arrived", actor=actor)
    jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=prediction.id, reason=reason)
    wakes = cancel.cancel_predictions(conn, job.id, reason="another prediction was chosen", actor=actor)
    for file in received.report.outputs:
        wakes += _add_output(received, file)
    notes = [f"{file.path} {file.problem}: {logs.redact_url(file.url or 'data:')}" for file in received.report.mentions]
    if notes:
        jobs.add_notes(conn, job.id, [to_storable(note, 1000) for note in notes], actor)
    job = jobs.lock(conn, job.id)
    wakes += settle.settle_if_last(conn, job, asset_base=source.asset_base, actor=actor)
    return ReportOutcome(True, True, f"chosen: {reason}", wakes)


def _add_output(received: _Received, file: OutputFile) -> list[Wake]:
    conn, prediction, actor, output_id = received.conn, received.prediction, received.source.actor, ids.uuid7()
    expires_at = received.expires_at if file.data is None else None
    job_id, prediction_id = received.job.id, prediction.id
    if not outputs.add(
        conn, output_id, job_id=job_id, prediction_id=prediction_id, file=file, expires_at=expires_at, actor=actor
    ):
        return []
    if file.problem is None:
        return [Wake("keep", output_id)]
    decision = DeadLetterDecision("DOWNLOAD_FAILED", "DownloadRefused", file.problem, retryable=False)
    dead_letters.add(
        conn, "output", output_id, decision, step="ingest", job_id=job_id, provider=prediction.provider, actor=actor
    )
    return []


def _refresh_urls(received: _Received) -> ReportOutcome:
    """Replace the URLs of waiting outputs by those of a later report; new paths in it are not new outputs."""
    conn, expires_at, prediction_id = received.conn, received.expires_at, received.prediction.id
    files = [file for file in received.report.outputs if file.url and not file.problem]
    count = sum(outputs.update_source_url(conn, prediction_id, file, expires_at) for file in files)
    if not count:
        return ReportOutcome(False, True, "duplicate: the prediction had succeeded")
    return ReportOutcome(True, True, f"renewed {count} URLs")


def _end_without_files(received: _Received, end: EndPrediction) -> ReportOutcome:
    conn, job, prediction, actor = received.conn, received.job, received.prediction, received.source.actor
    reason, step = to_storable(end.reason), "ingest" if received.source.channel == "webhook" else "poll"
    decision = DeadLetterDecision(end.category, "PredictionLost", reason, retryable=received.report.needs_fetch)
    received.end_prediction(end.state, reason=reason, category=end.category)
    if end.state == "lost":  # the provider created files that were not received
        provider = prediction.provider
        dead_letters.add(
            conn, "prediction", prediction.id, decision, step=step, job_id=job.id, provider=provider, actor=actor
        )
    wakes = fallback.advance(conn, job, decision, actor=actor)
    return ReportOutcome(True, True, f"{end.state}: {reason}", wakes)
