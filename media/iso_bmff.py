"""ISO base media boxes (MP4, AVIF): walks box headers and reads only requested content."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from media.containers import ContainerError, Data

_MAX_BOXES: Final = 200_000  # enough for a fragmented video of hours; limits the time for a file of empty boxes
_TOP_BOXES: Final = frozenset(
    {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"meta", b"sidx", b"ssix", b"prft", b"emsg", b"pdin",
     b"free", b"skip", b"wide", b"udta", b"uuid", b"idat"}
)  # fmt: skip


class BoxError(ContainerError):
    """The boxes do not fit the file; the message states the position."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its four-letter type, where it starts in the data, and the start and end of its content."""

    data: Data
    type: bytes
    offset: int
    start: int
    end: int

    def iterate(self, skipped: int = 0) -> Iterator["Box"]:
        """Yield the boxes of its content after the skipped bytes, in order; raises BoxError."""
        offset = self.start + skipped
        for _ in range(_MAX_BOXES):
            if offset == self.end:
                return
            box = _parse_box(self.data, offset, self.end)
            yield box
            offset = box.end
        raise BoxError(f"more than {_MAX_BOXES} boxes")

    def list_children(self, kind: bytes) -> list["Box"]:
        return [box for box in self.iterate() if box.type == kind]

    def find(self, *path: bytes) -> "Box | None":
        box: Box | None = self
        for kind in path:
            box = next((child for child in box.iterate() if child.type == kind), None) if box else None
        return box

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from an offset in its content, fewer at the end of the data."""
        return self.data[self.start + offset : self.start + offset + size]

    def unpack(self, layout: str, offset: int = 0) -> tuple[int, ...]:
        """Return numbers from its content, by a `struct` layout; raises BoxError if it is too short."""
        if self.start + offset + struct.calcsize(layout) > self.end:
            raise BoxError(f"box {self.name!r} has only {self.end - self.start} bytes")
        return struct.unpack_from(layout, self.data, self.start + offset)

    def unpack_versioned(self, layout: str, layout_64_bit: str) -> tuple[int, ...]:
        """Return numbers that follow version and flags; in version 1 some of them have 64 bits."""
        return self.unpack(layout_64_bit if self.unpack(">B")[0] == 1 else layout, 4)

    @property
    def name(self) -> str:
        return self.type.decode("latin-1")


def _parse_box(data: Data, offset: int, end: int) -> Box:
    header = data[offset : min(offset + 16, end)]
    if len(header) < 8:
        raise BoxError(f"ends within a box header at byte {offset}")
    size, kind, header_size = int.from_bytes(header[:4], "big"), header[4:8], 8
    if size == 1:
        size, header_size = int.from_bytes(header[8:16], "big"), 16
    elif size == 0:
        size = end - offset
    if size < header_size or len(header) < header_size:
        raise BoxError(f"a box of {size} bytes at byte {offset}")
    box = Box(data, kind, offset, offset + header_size, offset + size)
    if box.end > end:
        raise BoxError(f"box {box.name!r} at byte {offset} has {size} bytes, {end - offset} are there")
    return box


def list_top_boxes(data: Data) -> tuple[list[Box], str | None]:
    """
    Return the boxes of a file, and a note if other data follows them.

    Raises BoxError if a box of a known type, or the first one, does not fit: then the file is truncated.
    """
    boxes: list[Box] = []
    end = 0
    try:
        for box in Box(data, b"", 0, 0, len(data)).iterate():
            if box.type not in _TOP_BOXES and not all(0x20 <= byte < 0x7F for byte in box.type):
                break
            boxes.append(box)
            end = box.end
    except BoxError:
        kind = data[end + 4 : end + 8]
        is_known = bool(kind) and any(known.startswith(kind) for known in _TOP_BOXES)
        if not boxes or len(boxes) >= _MAX_BOXES or is_known:
            raise
    return boxes, f"{len(data) - end} bytes behind the last box ignored" if end < len(data) else None
