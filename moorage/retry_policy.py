"""What follows a failed attempt: a retry, or a dead letter. Pure: time, randomness and settings are arguments."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from moorage import local_errors
from moorage.errors import Category, DatabaseLocked, MoorageError, Permanent, Transient
from moorage.transitions import EventKind


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    max_errors: int = 12
    wait_base_seconds: float = 2.0
    wait_cap_seconds: float = 300.0
    internal_wait_seconds: float = 5.0  # own storage, database or disk unavailable
    expiry_margin: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class RetryContext:
    errors: int  # recorded failures before this one
    expires_at: datetime | None = None


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
    Return the action after a failure. Internal outages are limited by the URL's expiry only.

    An error caused by this machine (a socket without a file descriptor) is one of these, whatever its own type.
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
    last_run_at = ctx.expires_at - policy.expiry_margin if ctx.expires_at else None
    is_expired = last_run_at is not None and now >= last_run_at
    if is_expired and not isinstance(error, DatabaseLocked):  # nothing of a locked job can end
        reason = f"{reason}; the source expired before it could be kept"
        return DeadLetterDecision(error.category, name, reason, retryable=False, source_expired=True)
    if error.is_internal:
        wait = policy.internal_wait_seconds * (0.5 + jitter)
    else:
        wait = backoff(ctx.errors + 1, jitter, base=policy.wait_base_seconds, cap=policy.wait_cap_seconds)
    requested = error.retry_after if isinstance(error, Transient) and error.retry_after else 0.0
    run_at = now + timedelta(seconds=max(wait, requested))
    if last_run_at is not None and not is_expired:
        run_at = min(run_at, last_run_at)
    return Retry(run_at, reason, is_counted=not error.is_internal, kind=error.event_kind)
