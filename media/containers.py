"""Results and errors of parsing a container, and its bytes."""

import mmap
from dataclasses import dataclass
from typing import BinaryIO

Data = bytes | mmap.mmap


class ContainerError(Exception):
    """The container is truncated or malformed, or has no image or video."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Size in pixels after rotation, and duration; None if the container does not state it."""

    width_px: int | None
    height_px: int | None
    duration_s: float | None
    note: str | None = None  # what was ignored
    is_audio: bool = False  # it has sound and no picture


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the structure of a file states; `content_type` replaces that of its format."""

    duration_s: float | None = None
    note: str | None = None  # what was ignored
    content_type: str | None = None


def map_file(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
