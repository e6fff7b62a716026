"""The Retry-After header."""

import email.utils
import re
from datetime import UTC, datetime
from typing import Final

MAX_RETRY_AFTER_SECONDS: Final = 3600.0


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
