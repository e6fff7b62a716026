"""Decisions after a provider report, the end of outputs, and an entry without files: pure functions, no I/O."""

from dataclasses import dataclass
from typing import Literal

from moorage.errors import Category
from moorage.model import JobState, PredictionState
from moorage.provider_types import PredictionReport
from moorage.transitions import TERMINAL_PREDICTION_STATES

# --- provider reports -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PredictionContext:
    """The state that decides the effect of a report, read under the job lock."""

    prediction_state: PredictionState
    is_chosen: bool
    job_state: JobState
    has_render: bool
    can_poll: bool = True
    has_placeholder: bool = False  # the chosen prediction is a placeholder that is not deleted
    was_without_files: bool = False  # the provider reported its success before, without files


@dataclass(frozen=True, slots=True)
class IgnoreReport:
    reason: str


@dataclass(frozen=True, slots=True)
class ChoosePrediction:
    """The first success of a job: its outputs become the job's. `reopens_job`: the job had ended without files."""

    reopens_job: bool


@dataclass(frozen=True, slots=True)
class LateSuccess:
    """
    A success after another prediction of the job was chosen.

    `in_reserve`: that one's files are being stored; these are used if none of them can be published.
    """

    in_reserve: bool = False


@dataclass(frozen=True, slots=True)
class EndPrediction:
    state: PredictionState
    category: Category
    reason: str


PlainDecision = Literal[
    "record status",  # not ended yet
    "poll now",  # it ended, but the report has no result
    "poll again",  # the first success without files: a list may be complete only later than the status
    "refresh urls",  # a later report of the chosen prediction: update URLs and expiry of known paths only
]
ReportDecision = PlainDecision | IgnoreReport | ChoosePrediction | LateSuccess | EndPrediction


def on_report(report: PredictionReport, ctx: PredictionContext) -> ReportDecision:
    """Return the effect of a webhook or poll response. A prediction's status only moves forward."""
    if ctx.prediction_state in TERMINAL_PREDICTION_STATES:
        return _on_report_after_end(report, ctx)
    if report.needs_fetch and ctx.can_poll:
        return "poll now"
    if report.status in ("queued", "running", "unknown"):
        return "record status"
    if report.status == "succeeded":
        return _on_success(report, ctx)
    if report.status == "cancelled":
        return EndPrediction("cancelled", "PROVIDER_FAILED", report.error or f"provider status: {report.raw_status}")
    reason = report.error or f"provider status: {report.raw_status}, without a reason"
    return EndPrediction("failed", "PROVIDER_FAILED", reason)


def _on_report_after_end(report: PredictionReport, ctx: PredictionContext) -> ReportDecision:
    if report.status == "succeeded" and ctx.prediction_state == "succeeded":
        has_new_urls = ctx.is_chosen and report.outputs
        return "refresh urls" if has_new_urls else IgnoreReport("duplicate: the prediction had succeeded")
    is_without_files = ctx.prediction_state in ("lost", "cancelled") or ctx.was_without_files
    if report.status == "succeeded" and is_without_files and report.outputs:
        decision = _on_success(report, ctx)
        if ctx.prediction_state != "cancelled" or decision != LateSuccess():
            return decision
    if report.status in ("queued", "running", "unknown"):
        return IgnoreReport(f"backwards: {report.raw_status} after {ctx.prediction_state}")
    return IgnoreReport(f"late: {report.raw_status} after {ctx.prediction_state}")


def _on_success(report: PredictionReport, ctx: PredictionContext) -> ReportDecision:
    if not report.outputs:
        if report.needs_fetch:
            reason = "the webhook reports files without listing them, and the provider cannot be polled"
            return EndPrediction("lost", "PROVIDER_FAILED", f"{reason}: {report.error}" if report.error else reason)
        if report.data_removed:
            return EndPrediction("lost", "PROVIDER_FAILED", "the provider removed the files before they could be kept")
        if ctx.can_poll and not ctx.was_without_files:
            return "poll again"
        return EndPrediction("failed", "PROVIDER_FAILED", _explain_no_output(report))
    if ctx.job_state == "open" or (ctx.job_state == "keeping" and ctx.has_placeholder):
        return ChoosePrediction(reopens_job=False)
    if ctx.job_state == "partial" and ctx.has_placeholder:
        return ChoosePrediction(reopens_job=True)
    if ctx.job_state == "failed" and not ctx.has_render:
        return ChoosePrediction(reopens_job=True)
    return LateSuccess(in_reserve=ctx.job_state == "keeping")


def _explain_no_output(report: PredictionReport) -> str:
    reason = "NO_OUTPUT: the provider reports success without any file"
    named = ", ".join(f"{file.path} {file.problem}" for file in report.mentions)
    return f"{reason}; {named}" if named else reason


# --- a stored file --------------------------------------------------------------------------------------------------

StoredFileDecision = Literal["settle", "choose", "wait"]


def on_file_stored(job_state: JobState, *, is_awaited: bool, has_placeholder: bool) -> StoredFileDecision:
    """
    Return the effect of a stored file. `is_awaited`: of the chosen prediction, or the placeholder.

    One that its job no longer waits for makes its prediction the chosen one (`choose`), as a late success does, but
    not while files of another prediction are being stored (`wait`): theirs are published, and it is not needed.
    """
    if job_state != "keeping":
        return "choose"
    if is_awaited:
        return "settle"
    return "choose" if has_placeholder else "wait"


# --- how a job ends ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputCounts:
    """A job's outputs by state, counted in a separate statement after the job was locked."""

    waiting: int = 0  # of all predictions: a placeholder may be in flight when a late success is chosen
    kept: int = 0  # of the chosen prediction, without placeholders
    dead: int = 0  # as kept
    placeholders: int = 0  # kept
    foreign: int = 0  # as kept: dead, because their hosts are not the provider's; they make no job partial
    others: int = 0  # deferred, of predictions that were not chosen
    reserve: int = 0  # of these, files of a late success: not attempted yet


@dataclass(frozen=True, slots=True)
class Settlement:
    """
    How a job ends. `failed`: the chosen prediction yields no files; `on_no_files` decides what follows.

    `keeping`: it yields none either, and those of a late success are next.
    """

    state: JobState
    publish: bool
    discard_kept: bool = False


def on_output_counts(counts: OutputCounts, partial: str, *, has_next_entry: bool = False) -> Settlement | None:
    """Return how a `keeping` job ends; None while an output is waiting. A next entry precedes a placeholder."""
    if counts.waiting:
        return None
    if counts.kept and not counts.dead:
        return Settlement("succeeded", publish=True)
    if counts.kept and partial == "keep":
        return Settlement("partial", publish=True)
    if counts.reserve:
        return Settlement("keeping", publish=False, discard_kept=counts.kept > 0)
    if counts.placeholders and not has_next_entry:
        return Settlement("partial", publish=True, discard_kept=counts.kept > 0)
    return Settlement("failed", publish=False, discard_kept=counts.kept > 0)


# --- the fallback chain -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FallbackState:
    """The options of a job without files, read under its lock."""

    pending_predictions: int  # that may still yield files within their deadline
    next_entry: int | None  # index in the fallback chain; None after the last one or after the job's deadline
    placeholder: Literal["none", "wanted", "kept"]  # wanted: not stored yet; none: not requested, or not storable


FallbackDecision = Literal["await", "entry", "placeholder", "show placeholder", "fail"]


def on_no_files(state: FallbackState) -> FallbackDecision:
    """Return what follows when a prediction failed, or every file of the chosen one was given up."""
    if state.pending_predictions:
        return "await"
    if state.next_entry is not None:
        return "entry"
    if state.placeholder == "wanted":
        return "placeholder"
    return "show placeholder" if state.placeholder == "kept" else "fail"
