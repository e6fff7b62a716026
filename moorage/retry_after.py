"""How long a server asks us to wait."""

import email.utils
import re
from datetime import UTC, datetime
from typing import Final

MAX_RETRY_AFTER_SECONDS: Final = 3600.0


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, number or date, at most an hour; None when unreadable."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", value):
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now  # "-0000" is UTC without saying so
    return min(max(wait.total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)
