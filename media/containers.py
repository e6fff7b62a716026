"""Results and errors of parsing a container, and its bytes."""

import mmap
from dataclasses import dataclass
from typing import BinaryIO

Data = bytes | mmap.mmap


class ContainerError(Exception):
    """The container is truncated or malformed, or has no image or video."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the structure of a file states; `content_type` replaces that of its format."""

    duration_s: float | None = None
    note: str | None = None  # what was ignored
    content_type: str | None = None
    width_px: int | None = None  # after rotation, as the height
    height_px: int | None = None
    is_audio: bool = False  # it has sound and no picture


def map_file(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
