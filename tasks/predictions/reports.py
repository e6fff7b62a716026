"""Apply a provider's report, from a webhook or a poll, to its locked job and prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from db import dead_letters, jobs, outputs, placeholders, predictions, submissions
from db.connection import Connection, fetch_all
from db.outputs import NewOutput
from moorage import ids, lifecycle, logs
from moorage.lifecycle import EndPrediction, PredictionContext, ReportDecision
from moorage.model import Job, Prediction, Wake
from moorage.provider_types import PredictionReport
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable
from moorage.transitions import TERMINAL_PREDICTION_STATES
from providers import output_files
from tasks.jobs import cancel, fallback, settle

ASK_AGAIN_SECONDS = 10.0  # after a poll that returned a success without files


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
class ReceivedReport:
    """A report with the locked rows that it is applied to."""

    conn: Connection
    job: Job
    prediction: Prediction
    report: PredictionReport
    source: ReportSource

    @property
    def raw_status(self) -> str:
        return to_storable(self.report.raw_status, 100)

    @property
    def expires_at(self) -> datetime | None:
        return compute_expiry(self.report, self.source.received_at, self.source.output_life_seconds)

    @property
    def ended_by(self) -> str:
        """The channel; for a poll that a webhook requested, the webhook: it was not lost."""
        return "webhook" if self.prediction.is_announced else self.source.channel

    def end_prediction(self, state: str, *, reason: str | None, category: str | None = None) -> None:
        conn, row, raw, by, report = self.conn, self.prediction, self.raw_status, self.ended_by, self.report
        without_files = report.status == "succeeded" and not report.outputs and not report.needs_fetch
        more = {"category": category, "reason": reason, "raw_status": raw}
        predictions.end(conn, row, state, ended_by=by, actor=self.source.actor, without_files=without_files, **more)

    def close_dead_letter(self, reason: str) -> None:
        if self.prediction.has_dead_letter:
            actor = self.source.actor
            dead_letters.close_by_subject(self.conn, "prediction", self.prediction.id, reason=reason, actor=actor)


def receive(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReceivedReport:
    entry = submissions.get_entry(job, prediction)
    report = output_files.drop_inputs(report, entry.input if entry else None)
    if job.is_undescribed and report.prompt is not None:
        jobs.queue_description(conn, job.id, report.prompt)
    if prediction.model is None and report.model is not None:
        predictions.queue_model(conn, prediction.id, report.model)
    return ReceivedReport(conn, job, prediction, report, source)


def decide(received: ReceivedReport) -> ReportDecision:
    conn, job, prediction = received.conn, received.job, received.prediction
    has_placeholder = job.placeholder and placeholders.is_placeholder_chosen(conn, job.id)
    ctx = PredictionContext(
        prediction.state,
        job.chosen_id == prediction.id,
        job.state,
        prediction.has_render,
        received.source.can_poll,
        has_placeholder,
        prediction.was_without_files,
    )
    return lifecycle.on_report(received.report, ctx)


def needs_own_transaction(received: ReceivedReport, decision: ReportDecision) -> bool:
    """Return True if more may have to be locked, or the job settled; False for what most reports decide."""
    if isinstance(decision, lifecycle.ChoosePrediction):
        return not is_usual(received)
    return not isinstance(decision, lifecycle.IgnoreReport) and decision not in ("record status", "refresh urls")


def is_usual(received: ReceivedReport) -> bool:
    """Return True for the first success of a job with one prediction, with at least one file, and none inline."""
    job, prediction, files = received.job, received.prediction, received.report.outputs
    is_first = job.state == "open" and prediction.state == "running" and not prediction.has_others
    return is_first and not all(file.problem for file in files) and not any(file.data for file in files)


def apply_decisions(decided: Sequence[tuple[ReceivedReport, ReportDecision]]) -> list[ReportOutcome]:
    """Apply decisions in one transaction: those that choose a prediction at once, then the others in their order."""
    chosen = [received for received, decision in decided if isinstance(decision, lifecycle.ChoosePrediction)]
    outcomes = iter(choose(chosen) if chosen else ())
    return [
        next(outcomes) if isinstance(decision, lifecycle.ChoosePrediction) else apply_decision(received, decision)
        for received, decision in decided
    ]


def apply_report(
    conn: Connection, job: Job, prediction: Prediction, report: PredictionReport, source: ReportSource
) -> ReportOutcome:
    received = receive(conn, job, prediction, report, source)
    return apply_decision(received, decide(received))


def apply_decision(received: ReceivedReport, decision: ReportDecision) -> ReportOutcome:
    prediction = received.prediction
    match decision:
        case lifecycle.IgnoreReport(reason):
            return ReportOutcome(False, prediction.state in TERMINAL_PREDICTION_STATES, reason)
        case "record status":
            predictions.record_status(received.conn, prediction.id, received.raw_status)
            return ReportOutcome(True, False, f"still {received.raw_status}")
        case "poll now":
            return _poll_now(received)
        case "poll again":
            return _ask_again(received)
        case "refresh urls":
            return _refresh_urls(received)
        case lifecycle.LateSuccess(in_reserve):
            reason = f"late: the job was {received.job.state} already"
            received.end_prediction("succeeded", reason=reason)
            received.close_dead_letter(reason)
            if in_reserve:
                _add_dead_letters(received, _hold_in_reserve(received))
            return ReportOutcome(in_reserve, True, reason)
        case lifecycle.ChoosePrediction():
            return choose([received])[0]
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


def _poll_now(received: ReceivedReport, without_files: bool = False) -> ReportOutcome:
    """Make the prediction of a webhook due; a poll that is running is repeated after the provider's interval."""
    conn, prediction_id = received.conn, received.prediction.id
    predictions.record_status(conn, prediction_id, received.raw_status, without_files, announced=True)
    wakes = [Wake("poll", row_id) for row_id in predictions.make_due_by_id(conn, [prediction_id])]
    return ReportOutcome(True, False, f"{received.raw_status}: polling for the complete response", wakes)


def _ask_again(received: ReceivedReport) -> ReportOutcome:
    """Poll at once after a webhook, a little later after a poll."""
    if received.source.channel == "webhook":
        return _poll_now(received, without_files=True)
    predictions.record_status(received.conn, received.prediction.id, received.raw_status, without_files=True)
    return ReportOutcome(True, False, f"{received.raw_status}: asking again", poll_seconds=ASK_AGAIN_SECONDS)


def choose(chosen: Sequence[ReceivedReport]) -> list[ReportOutcome]:
    """Choose predictions of several jobs and insert their outputs: one statement for each table."""
    conn, source = chosen[0].conn, chosen[0].source
    counts = [len(received.report.outputs) for received in chosen]
    reasons = [f"{count} file{'' if count == 1 else 's'}" for count in counts]
    ended = [(received.prediction, received.raw_status) for received in chosen]
    args = predictions.build_end(ended, "succeeded", ended_by=chosen[0].ended_by)
    conn.queue(predictions.END, {**args, "without_files": False, "actor": source.actor})
    changes = [(one.job, reason, one.prediction.id) for one, reason in zip(chosen, reasons, strict=True)]
    new = [_build_outputs(received) for received in chosen]
    add = outputs.build_add([output for files in new for output in files], source.actor)
    added = set(add["id"])
    if all(is_usual(received) for received in chosen):
        conn.queue(jobs.CHANGE_STATE, {**jobs.build_change(changes, "keeping"), "actor": source.actor})
        conn.queue(outputs.ADD, add)
    else:
        for job, reason, chosen_id in changes:
            jobs.change_state(conn, job, "keeping", actor=source.actor, reason=reason, chosen_id=chosen_id)
        added = {row["id"] for row in fetch_all(conn, outputs.ADD, add)}
    return [
        ReportOutcome(True, True, f"chosen: {reason}", _complete_choice(one, [o for o in files if o.id in added]))
        for one, reason, files in zip(chosen, reasons, new, strict=True)
    ]


def _build_outputs(received: ReceivedReport) -> list[NewOutput]:
    job_id, prediction_id, expires_at = received.job.id, received.prediction.id, received.expires_at
    return [
        NewOutput(ids.uuid7(), job_id, prediction_id, file, expires_at if file.url is not None else None)
        for file in received.report.outputs
    ]


def _hold_in_reserve(received: ReceivedReport) -> list[NewOutput]:
    """Insert the outputs of a late success, which are attempted if none of the chosen prediction can be published."""
    new = _build_outputs(received)
    received.conn.execute(outputs.ADD, outputs.build_add(new, received.source.actor, in_reserve=True))
    return new


def _add_dead_letters(received: ReceivedReport, added: Sequence[NewOutput]) -> None:
    """Add the dead letters of files that must not be downloaded."""
    for output in (output for output in added if output.file.problem):
        decision = DeadLetterDecision("DOWNLOAD_FAILED", "DownloadRefused", output.file.problem or "", retryable=False)
        dead_letters.add(received.conn, "output", output.id, decision, step="ingest", actor=received.source.actor)


def _complete_choice(received: ReceivedReport, added: Sequence[NewOutput]) -> list[Wake]:
    """Do what only some choices need; returns wakes."""
    conn, job, prediction, actor = received.conn, received.job, received.prediction, received.source.actor
    received.close_dead_letter("a late success arrived")
    wakes = [Wake("keep", output.id) for output in added if output.file.problem is None]
    _add_dead_letters(received, added)
    notes = [f"{file.path} {file.problem}: {logs.redact_url(file.url or 'data:')}" for file in received.report.mentions]
    if notes:
        jobs.add_notes(conn, job.id, [to_storable(note, 1000) for note in notes], actor)
    if prediction.has_others:
        wakes = cancel.cancel_predictions(conn, job.id, reason="another prediction was chosen", actor=actor) + wakes
    if prediction.has_others or not wakes:
        job = replace(job, state="keeping", chosen_id=prediction.id)
        wakes += settle.settle_if_last(conn, job, asset_base=received.source.asset_base, actor=actor)
    return wakes


def _refresh_urls(received: ReceivedReport) -> ReportOutcome:
    """Replace the URLs of waiting outputs by those of a later report; new paths in it are not new outputs."""
    conn, expires_at, prediction_id = received.conn, received.expires_at, received.prediction.id
    files = [file for file in received.report.outputs if file.url and not file.problem]
    count = sum(outputs.update_source_url(conn, prediction_id, file.path, file.url, expires_at) for file in files)
    if not count:
        return ReportOutcome(False, True, "duplicate: the prediction had succeeded")
    return ReportOutcome(True, True, f"renewed {count} URLs")


def _end_without_files(received: ReceivedReport, end: EndPrediction) -> ReportOutcome:
    conn, job, prediction, actor = received.conn, received.job, received.prediction, received.source.actor
    reason, step = to_storable(end.reason), "ingest" if received.source.channel == "webhook" else "poll"
    decision = DeadLetterDecision(end.category, "PredictionLost", reason, retryable=received.report.needs_fetch)
    received.end_prediction(end.state, reason=reason, category=end.category)
    if end.state == "lost":  # the provider created files that were not received
        dead_letters.add(conn, "prediction", prediction.id, decision, step=step, actor=actor)
    wakes = fallback.advance(conn, job, decision, actor=actor)
    return ReportOutcome(True, True, f"{end.state}: {reason}", wakes)
