"""
What to do, decided by pure functions that return values. Time, chance and settings come in as arguments.

The state changes that there are stand in moorage/transitions.py.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from moorage.errors import Category, MoorageError, Permanent, Transient
from moorage.model import JobState, PredictionState
from moorage.provider_types import PredictionReport
from moorage.transitions import TERMINAL_PREDICTION_STATES

# --- failures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try."""

    max_errors: int = 12
    wait_base_seconds: float = 2.0
    wait_cap_seconds: float = 300.0
    internal_wait_seconds: float = 5.0  # our own storage, database or disk was away
    expiry_margin: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class RetryContext:
    """What the decision needs to know of the row that failed."""

    errors: int  # failures written back before this one
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again at a time; `counted` says whether the failure counts toward the limit."""

    run_at: datetime
    reason: str
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class DeadLetterDecision:
    """Write a dead letter."""

    category: Category
    error: str
    reason: str
    retryable: bool


def backoff(attempt: int, jitter: float, *, base: float = 2.0, cap: float = 300.0) -> float:
    """
    Return how long to wait before the next attempt, in seconds.

    "Full jitter": a share of min(cap, base * 2**attempt).
    Source: M. Brooker, "Exponential Backoff and Jitter", 2015.

    Args:
        attempt: attempts already made, from 1.
        jitter: the share, drawn evenly from [0, 1).
        base: seconds.
        cap: seconds.
    """
    return jitter * min(cap, base * 2.0 ** min(attempt, 30))  # 2.0**1024 overflows


def decide_after_failure(
    error: MoorageError, ctx: RetryContext, *, now: datetime, jitter: float, policy: RetryPolicy
) -> Retry | DeadLetterDecision:
    """Decide what follows a failure; our own outages count against the URL's life only."""
    reason = str(error)
    name = type(error).__name__
    if isinstance(error, Permanent):
        return DeadLetterDecision(error.category, name, reason, error.retryable)
    if not error.is_internal and ctx.errors + 1 >= policy.max_errors:
        return DeadLetterDecision(
            error.category, name, f"{reason} (given up after {ctx.errors + 1} errors)", retryable=True
        )
    last = ctx.expires_at - policy.expiry_margin if ctx.expires_at else None
    if last is not None and now >= last:
        return DeadLetterDecision(
            error.category, name, f"{reason}; the source expired before it could be kept", retryable=False
        )
    if error.is_internal:
        wait = policy.internal_wait_seconds * (0.5 + jitter)
    else:
        wait = backoff(ctx.errors + 1, jitter, base=policy.wait_base_seconds, cap=policy.wait_cap_seconds)
    asked = error.retry_after if isinstance(error, Transient) and error.retry_after else 0.0
    at = now + timedelta(seconds=max(wait, asked))
    return Retry(run_at=min(at, last) if last else at, reason=reason, is_counted=not error.is_internal)


# --- what a provider's answer does ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PredictionContext:
    """What the decision on a report needs to know, read under the job lock."""

    prediction_state: PredictionState
    is_chosen: bool
    job_state: JobState
    has_render: bool
    can_poll: bool = True  # the provider has a status endpoint, and we the token for it
    has_placeholder: bool = False  # what the job has chosen is its placeholder, and nobody has deleted that


@dataclass(frozen=True, slots=True)
class IgnoreReport:
    """Record it; it changes nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecordStatus:
    """Still running: remember the provider's word."""


@dataclass(frozen=True, slots=True)
class PollNow:
    """It ended, and the answer says no more than that: ask for the whole one at once."""


@dataclass(frozen=True, slots=True)
class ChoosePrediction:
    """The first terminal success of a job: its outputs are the job's. `reopens` when the job had ended without any."""

    reopens_job: bool


@dataclass(frozen=True, slots=True)
class RefreshUrls:
    """A later answer of the chosen prediction: only fresh URLs and expiries of paths already known are taken."""


@dataclass(frozen=True, slots=True)
class LateSuccess:
    """A success that another prediction of the job was faster than."""


@dataclass(frozen=True, slots=True)
class EndPrediction:
    """The prediction ended without files; `closes_job` unless something else is still to be awaited."""

    state: PredictionState
    category: Category
    reason: str


ReportDecision = IgnoreReport | RecordStatus | PollNow | ChoosePrediction | RefreshUrls | LateSuccess | EndPrediction


def on_report(report: PredictionReport, ctx: PredictionContext) -> ReportDecision:
    """Decide what a webhook or poll answer does; a prediction's status only moves forward."""
    if ctx.prediction_state in TERMINAL_PREDICTION_STATES:
        return _on_report_after_end(report, ctx)
    if report.status in ("queued", "running", "unknown"):
        return RecordStatus()
    if report.needs_fetch and ctx.can_poll:
        return PollNow()
    if report.status == "succeeded":
        return _on_success(report, ctx)
    if report.status == "cancelled":
        return EndPrediction("cancelled", "PROVIDER_FAILED", report.error or f"the provider says {report.raw_status}")
    return EndPrediction(
        "failed", "PROVIDER_FAILED", report.error or f"the provider says {report.raw_status}, without a reason"
    )


def _on_report_after_end(report: PredictionReport, ctx: PredictionContext) -> ReportDecision:
    if report.status == "succeeded" and ctx.prediction_state == "succeeded":
        return (
            RefreshUrls()
            if ctx.is_chosen and report.outputs
            else IgnoreReport("duplicate: the prediction had succeeded")
        )
    if report.status == "succeeded" and ctx.prediction_state == "lost" and report.outputs:
        return _on_success(report, ctx)
    if report.status in ("queued", "running", "unknown"):
        return IgnoreReport(f"backwards: {report.raw_status} after {ctx.prediction_state}")
    return IgnoreReport(f"late: {report.raw_status} after {ctx.prediction_state}")


def _on_success(report: PredictionReport, ctx: PredictionContext) -> ReportDecision:
    if not report.outputs:
        if report.needs_fetch:
            why = "the webhook tells of files without bringing them, and the provider cannot be asked for them"
            return EndPrediction("lost", "PROVIDER_FAILED", f"{why}: {report.error}" if report.error else why)
        if report.data_removed:
            return EndPrediction("lost", "PROVIDER_FAILED", "the provider removed the files before they could be kept")
        return EndPrediction("failed", "PROVIDER_FAILED", "NO_OUTPUT: the provider reports success without any file")
    if ctx.job_state == "open" or (ctx.job_state == "keeping" and ctx.has_placeholder):
        return ChoosePrediction(reopens_job=False)
    if ctx.job_state == "partial" and ctx.has_placeholder:
        return ChoosePrediction(reopens_job=True)
    if ctx.job_state == "failed" and not ctx.has_render:
        return ChoosePrediction(reopens_job=True)
    return LateSuccess()


# --- how a job ends ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputCounts:
    """
    A job's outputs by state, counted in a statement of its own after the job was locked.

    Args:
        waiting: all of them; a placeholder may still be worked on when a late success is chosen.
        kept, dead: files of the chosen prediction, a placeholder not counted.
        placeholders: kept placeholders.
    """

    waiting: int = 0
    kept: int = 0
    dead: int = 0
    placeholders: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """
    End the job: publish what was kept, or discard it.

    `failed` says that the chosen prediction brought nothing; what follows is `after_nothing`'s to decide.
    """

    state: JobState
    publish: bool
    discard_kept: bool = False


def on_output_counts(counts: OutputCounts, partial: str, *, has_next_entry: bool = False) -> Settlement | None:
    """
    Decide whether and how a `keeping` job ends; None while an output is still waiting.

    Args:
        more: the chain has an entry to go on with, which comes before a placeholder that readers see already.
    """
    if counts.waiting:
        return None
    if counts.kept and not counts.dead:
        return Settlement("succeeded", publish=True)
    if counts.kept and partial == "keep":
        return Settlement("partial", publish=True)
    if counts.placeholders and not has_next_entry:
        return Settlement("partial", publish=True, discard_kept=counts.kept > 0)
    return Settlement("failed", publish=False, discard_kept=counts.kept > 0)


# --- what follows a try that brought nothing --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FallbackState:
    """
    What a job that has nothing can still hope for, read under its lock.

    Args:
        awaited: predictions that may still bring files within our time limit.
        following: the entry of the chain that comes next; None: it was the last, or the deadline has passed.
        placeholder: wanted, if there is none yet; kept; none: not asked for, or it could not be kept.
    """

    pending_predictions: int
    next_entry: int | None
    placeholder: Literal["none", "wanted", "kept"]


FallbackDecision = Literal["await", "entry", "placeholder", "show placeholder", "fail"]


def on_no_files(state: FallbackState) -> FallbackDecision:
    """Decide what follows when a prediction, or every file of the chosen one, came to nothing."""
    if state.pending_predictions:
        return "await"
    if state.next_entry is not None:
        return "entry"
    if state.placeholder == "wanted":
        return "placeholder"
    return "show placeholder" if state.placeholder == "kept" else "fail"
