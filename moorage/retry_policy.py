"""What follows a failed attempt: a retry, or a dead letter. Pure: time, randomness and settings are arguments."""

import email.utils
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final, Literal, get_args

from moorage import local_errors
from moorage.errors import Category, MoorageError, Permanent
from moorage.transitions import EventKind, SourceEventKind

SOURCE_KINDS: Final[tuple[EventKind, ...]] = get_args(SourceEventKind)
MAX_RETRY_AFTER_SECONDS: Final = 3600.0
WAIT_BASE_SECONDS: Final = 2.0
# Seconds between the attempts at a notification: 72 hours in all (docs/http.md has the same schedule).
NOTIFICATION_WAITS: Final = (5, 25, 90, 300, 780, 2400, *(hours * 3600 for hours in (1, 2, 4, 8, 12, 20, 24)))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    max_errors: int = 12
    wait_base_seconds: float = WAIT_BASE_SECONDS
    wait_cap_seconds: float = 300.0
    internal_wait_seconds: float = 5.0  # own storage, database or disk unavailable
    expiry_margin: timedelta = timedelta(seconds=10)
    expired_source_seconds: float = 600.0  # attempts go on for this long past the expiry
    source_seconds: float = 86400.0  # life of a source without an expiry, from its first failure
    job_wait_seconds: float = 900.0  # a job waits at most this long for a file, from its first failure


@dataclass(frozen=True, slots=True)
class RetryContext:
    """What the limit of attempts depends on. Only the work on a file with a URL has the times and `source_errors`."""

    errors: int  # recorded failures before this one
    expires_at: datetime | None = None  # of the source; if the provider states none: a day after its first failure
    expired_attempts: Sequence[datetime] = ()  # earlier failures of the source at or past its expiry, oldest first
    work: Literal["file", "notification", "other"] = "other"
    failing_since: datetime | None = None  # the first of the recorded failures
    source_errors: int = 0  # of the recorded failures, those of the source
    is_deferred: bool = False  # the job no longer waits for the file


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry at `run_at`; an uncounted failure does not count toward the error limit."""

    run_at: datetime
    reason: str
    is_counted: bool = True
    kind: EventKind = "attempt_failed"
    defers: bool = False  # from now on the job does not wait for the file


@dataclass(frozen=True, slots=True)
class DeadLetterDecision:
    category: Category
    error: str
    reason: str
    retryable: bool
    source_expired: bool = False


def backoff(attempt: int, jitter: float, *, base: float = 2.0, cap: float = 300.0) -> float:
    """
    Return the delay before the next attempt, in seconds.

    Full jitter: a random fraction of min(cap, base * 2**attempt).
    Source: M. Brooker, "Exponential Backoff and Jitter", 2015.

    Args:
        attempt: number of completed attempts, from 1.
        jitter: the fraction, uniform in [0, 1).
    """
    return jitter * min(cap, base * 2.0 ** min(attempt, 30))  # 2.0**1024 overflows


def decide_after_failure(
    error: MoorageError, ctx: RetryContext, *, now: datetime, jitter: float, policy: RetryPolicy
) -> Retry | DeadLetterDecision:
    """
    Return the action after a failure.

    Internal outages are not limited. An error caused by this machine (a socket without a file descriptor) is one of
    these, whatever its own type. `expires_at` orders attempts and ends none by itself: a clock may be wrong.
    """
    if not error.is_internal:
        error = local_errors.find_local_failure(error) or error
    reason = str(error)
    name = type(error).__name__
    if isinstance(error, Permanent):
        return DeadLetterDecision(error.category, name, reason, error.retryable)
    if not error.is_internal and _is_exhausted(error, ctx, now, policy):
        reason = f"{reason} (given up after {ctx.errors + 1} errors)"
        return DeadLetterDecision(error.category, name, reason, retryable=True)
    if error.event_kind in SOURCE_KINDS and _has_failed_past_expiry(ctx, now, policy):
        attempts = len(ctx.expired_attempts) + 1
        reason = f"{reason}; the source expired at {ctx.expires_at}, and {attempts} attempts since then have failed"
        return DeadLetterDecision(error.category, name, reason, retryable=True, source_expired=True)
    run_at = now + timedelta(seconds=_compute_wait(error, ctx, jitter, policy))
    if ctx.expires_at is not None:
        last_run_at = ctx.expires_at - policy.expiry_margin
        latest = last_run_at if last_run_at > now else now + _longest_gap(policy)
        run_at = min(run_at, latest)
    defers = not error.is_internal and _is_deferred_by(ctx, run_at, now, policy)
    return Retry(run_at, reason, is_counted=not error.is_internal, kind=error.event_kind, defers=defers)


def _is_exhausted(error: MoorageError, ctx: RetryContext, now: datetime, policy: RetryPolicy) -> bool:
    """Return True at the limit of errors. A source has none; what prevents attempts at it ends with it."""
    if ctx.work == "notification" and error.category != "INTERNAL":
        return ctx.errors >= len(NOTIFICATION_WAITS)
    if ctx.errors + 1 < policy.max_errors:
        return False
    if ctx.work != "file":
        return True
    if error.category == "INTERNAL":
        return ctx.errors - ctx.source_errors + 1 >= policy.max_errors
    if error.event_kind in SOURCE_KINDS or ctx.expires_at is None:
        return False
    return now >= ctx.expires_at + timedelta(seconds=policy.expired_source_seconds)


def _compute_wait(error: MoorageError, ctx: RetryContext, jitter: float, policy: RetryPolicy) -> float:
    requested = error.retry_after or 0.0
    if error.is_internal:
        return max(policy.internal_wait_seconds * (0.5 + jitter), requested)
    if ctx.work == "notification":
        wait = NOTIFICATION_WAITS[min(ctx.errors, len(NOTIFICATION_WAITS) - 1)]
        return max(wait * (1.0 + 0.1 * jitter) * policy.wait_base_seconds / WAIT_BASE_SECONDS, requested)
    return max(backoff(ctx.errors + 1, jitter, base=policy.wait_base_seconds, cap=policy.wait_cap_seconds), requested)


def _is_deferred_by(ctx: RetryContext, run_at: datetime, now: datetime, policy: RetryPolicy) -> bool:
    if ctx.work != "file" or ctx.is_deferred:
        return False
    longest = (ctx.failing_since or now) + timedelta(seconds=policy.job_wait_seconds)
    return ctx.errors + 1 >= policy.max_errors or run_at > longest


def _has_failed_past_expiry(ctx: RetryContext, now: datetime, policy: RetryPolicy) -> bool:
    """
    Return True if attempts at the source, this one included, have failed for long enough past its expiry.

    Of the time between two attempts at most half counts: three are needed, and a jump of the clock is not enough.
    """
    if ctx.expires_at is None or now < ctx.expires_at:
        return False
    gaps = (min(max(later - earlier, timedelta()), _longest_gap(policy))
            for earlier, later in pairwise((*ctx.expired_attempts, now)))  # fmt: skip
    return sum(gaps, timedelta()) >= timedelta(seconds=policy.expired_source_seconds)


def _longest_gap(policy: RetryPolicy) -> timedelta:
    return timedelta(seconds=policy.expired_source_seconds / 2)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the delay of a Retry-After header (number or date) in seconds, at most one hour; None if unreadable."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value):
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        retry_at = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    wait = (retry_at if retry_at.tzinfo else retry_at.replace(tzinfo=UTC)) - now  # "-0000" means UTC
    return min(max(wait.total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)
