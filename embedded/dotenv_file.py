"""The file in which a running stack leaves its settings for other commands."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedded.credentials import write_private


@contextlib.contextmanager
def dotenv_file(path: Path, values: Mapping[str, str]) -> Iterator[None]:
    """Write a file as `.env`, readable only by the user; remove it at the end, unless another stack replaced it."""
    text = "".join(f"{name}='{_escape(value)}'\n" for name, value in sorted(values.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, text)
    try:
        yield
    finally:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            path.unlink()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
