"""Text that PostgreSQL can store, and text for operators."""

from datetime import datetime


def to_storable(text: str, max_chars: int = 2000) -> str:
    """Return text with NUL and lone surrogates escaped, truncated to `max_chars` characters."""
    safe = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return safe if len(safe) <= max_chars else safe[: max_chars - 1] + "…"


def is_storable(text: str) -> bool:
    return to_storable(text, len(text)) == text


def escape_control_chars(text: str) -> str:
    """Return the text with control characters as escapes, so that external text cannot control the terminal."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def format_age(at: datetime | None, now: datetime) -> str:
    """Return "12 s ago", "in 12 s" for a future time, or "never" for None."""
    if at is None:
        return "never"
    seconds = (now - at).total_seconds()
    return f"{format_duration(seconds)} ago" if seconds >= 0 else f"in {format_duration(-seconds)}"


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit: "850 ms", "12 s", "5 min", "3 h", "9 d"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"
