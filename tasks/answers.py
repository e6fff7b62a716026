"""What a server's answer to a download means, decided from status and headers alone."""

import email.utils
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from moorage.errors import DownloadInterrupted, DownloadRefused, MoorageError, OutputGone

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GONE: Final = frozenset({401, 403, 404, 410})
_LATER: Final = frozenset({408, 425, 429})
MAX_RETRY_AFTER_SECONDS: Final = 3600.0


def failure(status: int, headers: Mapping[str, str], *, now: datetime, facts: Mapping[str, Any]) -> MoorageError | None:
    """Return the error that an answer amounts to, or None for a body that can be read."""
    if status in _GONE:
        return OutputGone(f"the server answered {status}", facts=facts)
    if 400 <= status < 500 and status not in _LATER:
        return DownloadRefused(f"the server answered {status}", facts=facts)
    if status != 200:
        wait = retry_after(headers.get("Retry-After"), now)
        return DownloadInterrupted(f"the server answered {status}", facts=facts, retry_after=wait)
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):  # asked for identity; a small body could unpack to any size
        return DownloadRefused(f"the body is {encoding}-encoded, which was not asked for", facts=facts)
    return None


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds a Retry-After header asks for, at most an hour; None when it says nothing readable."""
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
