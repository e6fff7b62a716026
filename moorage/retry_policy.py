"""What follows a failed attempt: a retry, or a dead letter. Pure: time, randomness and settings are arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, get_args

from moorage import local_errors
from moorage.errors import Category, MoorageError, Permanent, Transient
from moorage.transitions import EventKind, SourceEventKind

SOURCE_KINDS: Final[tuple[EventKind, ...]] = get_args(SourceEventKind)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    max_errors: int = 12
    wait_base_seconds: float = 2.0
    wait_cap_seconds: float = 300.0
    internal_wait_seconds: float = 5.0  # own storage, database or disk unavailable
    expiry_margin: timedelta = timedelta(seconds=10)
    expired_source_seconds: float = 600.0  # attempts go on for this long past the expiry


@dataclass(frozen=True, slots=True)
class RetryContext:
    errors: int  # recorded failures before this one
    expires_at: datetime | None = None
    expired_attempts: Sequence[datetime] = ()  # earlier failures of the source at or past its expiry, oldest first


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry at `run_at`; an uncounted failure does not count toward the error limit."""

    run_at: datetime
    reason: str
    is_counted: bool = True
    kind: EventKind = "attempt_failed"


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
    if not error.is_internal and ctx.errors + 1 >= policy.max_errors:
        reason = f"{reason} (given up after {ctx.errors + 1} errors)"
        return DeadLetterDecision(error.category, name, reason, retryable=True)
    if error.event_kind in SOURCE_KINDS and _is_past_expiry(ctx, now, policy):
        attempts = len(ctx.expired_attempts) + 1
        reason = f"{reason}; the source expired at {ctx.expires_at}, and {attempts} attempts since then have failed"
        return DeadLetterDecision(error.category, name, reason, retryable=True, source_expired=True)
    if error.is_internal:
        wait = policy.internal_wait_seconds * (0.5 + jitter)
    else:
        wait = backoff(ctx.errors + 1, jitter, base=policy.wait_base_seconds, cap=policy.wait_cap_seconds)
    requested = error.retry_after if isinstance(error, Transient) and error.retry_after else 0.0
    run_at = now + timedelta(seconds=max(wait, requested))
    if ctx.expires_at is not None:
        last_run_at = ctx.expires_at - policy.expiry_margin
        latest = last_run_at if last_run_at > now else now + _longest_gap(policy)
        run_at = min(run_at, latest)
    return Retry(run_at, reason, is_counted=not error.is_internal, kind=error.event_kind)


def _is_past_expiry(ctx: RetryContext, now: datetime, policy: RetryPolicy) -> bool:
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
