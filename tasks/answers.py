"""What a server's answer to a download means, decided from status and headers alone."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from moorage.errors import DownloadInterrupted, DownloadRefused, MoorageError, OutputGone
from moorage.waits import retry_after

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GONE: Final = frozenset({401, 403, 404, 410})
_LATER: Final = frozenset({408, 425, 429})


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
