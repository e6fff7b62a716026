"""Text that PostgreSQL can store."""


def to_storable(text: str, max_chars: int = 2000) -> str:
    """Return text with NUL and lone surrogates escaped, truncated to `max_chars` characters."""
    safe = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return safe if len(safe) <= max_chars else safe[: max_chars - 1] + "…"


def is_storable(text: str) -> bool:
    if "\x00" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
