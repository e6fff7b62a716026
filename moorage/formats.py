"""The formats of files that moorage keeps, by name."""

from collections.abc import Sequence
from typing import Final

PICTURES: Final = ("png", "jpeg", "webp", "gif", "avif")
FORMATS: Final = (
    *PICTURES, "mp4", "webm", "mov", "mkv",
    "wav", "mp3", "flac", "ogg", "m4a", "weba", "mka", "svg", "glb", "zip", "pdf", "json", "txt",
)  # fmt: skip
_UPLOAD: Final = "upload:"
# `png` accepts it as output, `upload:png` as upload.
ACCEPT: Final = (*FORMATS, *(f"{_UPLOAD}{name}" for name in (*PICTURES, "mp4", "webm")))


def check_accept(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        if entry.removeprefix(_UPLOAD) not in FORMATS:
            raise ValueError(
                f"{entry!r} is not a format: write one of {', '.join(FORMATS)}, or upload: and one of them"
            )
    return entries


def list_accepted(entries: Sequence[str], *, of_uploads: bool = False) -> tuple[str, ...]:
    """Return the accepted formats of outputs, or of uploads; the default of those of which none is named."""
    named = [entry.removeprefix(_UPLOAD) for entry in entries if entry.startswith(_UPLOAD) == of_uploads]
    return tuple(named) or list_accepted(ACCEPT, of_uploads=of_uploads)
