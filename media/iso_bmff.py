"""ISO base media boxes (MP4, AVIF), walked by their headers: nothing but what is asked for is read."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

_MAX_BOXES: Final = 200_000  # a fragmented video of some hours; a file of empty boxes must not keep a worker busy


class BoxError(Exception):
    """The boxes do not fit the file. The message says where."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its four letters, and where its content starts and ends in the file."""

    type: bytes
    start: int
    end: int


def iterate_boxes(file: BinaryIO, start: int, end: int) -> Iterator[Box]:
    """
    Return the boxes between two offsets, in order.

    Raises:
        BoxError: a header is broken or a box is longer than what holds it.
    """
    at = start
    for _ in range(_MAX_BOXES):
        if at == end:
            return
        box = _box(file, at, end)
        yield box
        at = box.end
    raise BoxError(f"more than {_MAX_BOXES} boxes")


def _box(file: BinaryIO, at: int, end: int) -> Box:
    header = read_bytes(file, at, min(16, end - at))
    if len(header) < 8:
        raise BoxError(f"ends within a box header at byte {at}")
    size, kind, skip = int.from_bytes(header[:4], "big"), header[4:8], 8
    if size == 1:
        size, skip = int.from_bytes(header[8:16], "big"), 16
    elif size == 0:
        size = end - at
    if size < skip or len(header) < skip:
        raise BoxError(f"a box of {size} bytes at byte {at}")
    if at + size > end:
        raise BoxError(f"box {kind.decode('latin-1')!r} at byte {at} has {size} bytes, {end - at} are there")
    return Box(kind, at + skip, at + size)


def find_box_error(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with the outermost boxes of a file, or None when they fill it exactly."""
    try:
        for _ in iterate_boxes(file, 0, size):
            pass
    except BoxError as error:
        return str(error)
    return None


def find_box(file: BinaryIO, within: Box, *path: bytes) -> Box | None:
    """Return the first box at a path of types inside a box."""
    box: Box | None = within
    for kind in path:
        if box is None:
            return None
        box = next((child for child in iterate_boxes(file, box.start, box.end) if child.type == kind), None)
    return box


def read_bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return bytes of the file, fewer at its end."""
    file.seek(offset, os.SEEK_SET)
    return file.read(size)


def unpack_fields(file: BinaryIO, box: Box, layout: str, offset: int = 0) -> tuple[int, ...]:
    """
    Return numbers from the content of a box.

    Raises:
        BoxError: the box is too short for them.
    """
    size = struct.calcsize(layout)
    if box.start + offset + size > box.end:
        raise BoxError(f"box {box.type.decode('latin-1')!r} has only {box.end - box.start} bytes")
    return struct.unpack(layout, read_bytes(file, box.start + offset, size))
