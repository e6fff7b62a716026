"""ISO base media boxes (MP4, AVIF): walks box headers and reads only requested content."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

_MAX_BOXES: Final = 200_000  # enough for a fragmented video of hours; limits the time for a file of empty boxes
_TOP_BOXES: Final = frozenset(
    {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"meta", b"sidx", b"ssix", b"prft", b"emsg", b"pdin",
     b"free", b"skip", b"wide", b"udta", b"uuid", b"idat"}
)  # fmt: skip


class BoxError(Exception):
    """The boxes do not fit the file; the message states the position."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its four-letter type, and the start and end of its content in the file."""

    type: bytes
    start: int
    end: int


def iterate_boxes(file: BinaryIO, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets, in order; raises BoxError."""
    offset = start
    for _ in range(_MAX_BOXES):
        if offset == end:
            return
        box = _parse_box(file, offset, end)
        yield box
        offset = box.end
    raise BoxError(f"more than {_MAX_BOXES} boxes")


def _parse_box(file: BinaryIO, offset: int, end: int) -> Box:
    header = read_bytes(file, offset, min(16, end - offset))
    if len(header) < 8:
        raise BoxError(f"ends within a box header at byte {offset}")
    size, kind, header_size = int.from_bytes(header[:4], "big"), header[4:8], 8
    if size == 1:
        size, header_size = int.from_bytes(header[8:16], "big"), 16
    elif size == 0:
        size = end - offset
    if size < header_size or len(header) < header_size:
        raise BoxError(f"a box of {size} bytes at byte {offset}")
    if offset + size > end:
        raise BoxError(f"box {kind.decode('latin-1')!r} at byte {offset} has {size} bytes, {end - offset} are there")
    return Box(kind, offset + header_size, offset + size)


def list_top_boxes(file: BinaryIO, size: int) -> tuple[list[Box], str | None]:
    """
    Return the boxes of a file, and a note if other data follows them.

    Raises BoxError if a box of a known type, or the first one, does not fit: then the file is truncated.
    """
    boxes: list[Box] = []
    end = 0
    try:
        for box in iterate_boxes(file, 0, size):
            if box.type not in _TOP_BOXES and not all(0x20 <= byte < 0x7F for byte in box.type):
                break
            boxes.append(box)
            end = box.end
    except BoxError:
        kind = read_bytes(file, end + 4, 4)
        is_known = bool(kind) and any(known.startswith(kind) for known in _TOP_BOXES)
        if not boxes or len(boxes) >= _MAX_BOXES or is_known:
            raise
    return boxes, f"{size - end} bytes behind the last box ignored" if end < size else None


def find_box(file: BinaryIO, within: Box, *path: bytes) -> Box | None:
    box: Box | None = within
    for kind in path:
        if box is None:
            return None
        box = next((child for child in iterate_boxes(file, box.start, box.end) if child.type == kind), None)
    return box


def read_bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of the file."""
    file.seek(offset, os.SEEK_SET)
    return file.read(size)


def unpack_fields(file: BinaryIO, box: Box, layout: str, offset: int = 0) -> tuple[int, ...]:
    """Return numbers from the content of a box, by a `struct` layout; raises BoxError if it is too short."""
    size = struct.calcsize(layout)
    if box.start + offset + size > box.end:
        raise BoxError(f"box {box.type.decode('latin-1')!r} has only {box.end - box.start} bytes")
    return struct.unpack(layout, read_bytes(file, box.start + offset, size))
