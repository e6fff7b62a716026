"""Results and errors of walking a container before anything is decoded, and parts of its file."""

import bisect
import io
import itertools
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

Data = bytes | mmap.mmap
Piece = bytes | tuple[int, int]  # literal bytes, or start and end of a part of the file
MAX_PARTS: Final = 2**17  # of an image: one of two bytes takes a hundred in memory


class ContainerError(Exception):
    """The container is truncated or malformed, or has no image or video."""


def check_parts(count: int) -> None:
    if count > MAX_PARTS:
        raise ContainerError(f"malformed: it has more than {MAX_PARTS} parts")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the structure of a file states; `content_type` replaces that of its format."""

    duration_s: float | None = None
    note: str | None = None  # what was ignored
    content_type: str | None = None
    width_px: int | None = None  # after rotation, as the height
    height_px: int | None = None
    is_audio: bool = False  # it has sound and no picture


@dataclass(slots=True)
class ImageScan:
    """
    What the container states, and which of its parts the decoder may read.

    `pieces` leaves out metadata and what follows the image, so that they cannot make the decoder fail. `info` replaces
    values of the decoded image: transparency, colour profile, gamma. `cicp` has colour primaries and transfer function
    by ITU-T H.273.
    """

    width_px: int
    height_px: int
    frames: int
    pieces: list[Piece]
    notes: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    cicp: tuple[int, int] | None = None
    added_pieces: int = 0  # of its variants, in memory


def map_file(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def open_pieces(file: BinaryIO, pieces: Sequence[Piece]) -> BinaryIO:
    """Return the pieces as one readable file; the position of `file` is neither used nor changed."""
    return io.BufferedReader(SplicedFile(file, pieces), 1 << 16)


class SplicedFile(io.RawIOBase):
    """Parts of a file and literal bytes, in sequence."""

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        self._file, self._pieces, self._offset = file, pieces, 0
        sizes = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._starts = [0, *itertools.accumulate(sizes)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._offset >= self._starts[-1]:
            return 0
        index = bisect.bisect_right(self._starts, self._offset) - 1
        within, piece = self._offset - self._starts[index], self._pieces[index]
        size = min(len(buffer), self._starts[index + 1] - self._offset)
        is_literal = isinstance(piece, bytes)
        data = piece[within : within + size] if is_literal else os.pread(self._file.fileno(), size, piece[0] + within)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._starts[-1]}[whence]
        self._offset = max(0, base + offset)
        return self._offset
