"""WebM without a decoder: checks that the file is complete, and reads size and duration."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from media.containers import ContainerError, VideoFacts

_EBML, _SEGMENT, _CLUSTER, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
_TIMESTAMP_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK, _TRACK_TYPE, _VIDEO, _WIDTH, _HEIGHT = 0xAE, 0x83, 0xE0, 0xB0, 0xBA
# Top-level elements of a segment; they also end a cluster of unknown size.
_SEEK_HEAD, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS = 0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469
_FIRST_LEVEL: Final = frozenset({_CLUSTER, _INFO, _TRACKS, _SEEK_HEAD, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS})
_IN_CLUSTER: Final = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, 0xBF})
_MAX_ELEMENTS: Final = 5_000_000  # enough for a live recording; limits the time for a file of empty elements

_MAX_PX: Final = 65_536  # limit of VP9; an invalid value of the 64-bit field would not fit its column


@dataclass(frozen=True, slots=True)
class Element:
    """An element: its id, and the start and end of its content in the file."""

    id: int
    start: int
    end: int | None  # None: unknown size (live)


def parse_webm(file: BinaryIO, size: int) -> VideoFacts:
    """Return size and duration of a WebM of `size` bytes; raises ContainerError if it is not complete."""
    segment = next((e for e in iterate_elements(file, 0, size) if e.id == _SEGMENT), None)
    if segment is None:
        raise ContainerError("no segment: truncated or never finished")
    first_elements: dict[int, Element] = {}
    for element in iterate_elements(file, segment.start, size if segment.end is None else segment.end):
        if segment.end is None and element.id not in _FIRST_LEVEL | _IN_CLUSTER | {_EBML, _SEGMENT}:
            raise ContainerError(f"unknown element {element.id:#x} at byte {element.start}")
        first_elements.setdefault(element.id, element)
    if _TRACKS not in first_elements or _CLUSTER not in first_elements:
        raise ContainerError("no tracks" if _TRACKS not in first_elements else "no data (cluster)")
    width, height = _read_size(file, first_elements[_TRACKS])
    return VideoFacts(width, height, _read_duration(file, first_elements.get(_INFO)))


def iterate_elements(file: BinaryIO, start: int, end: int) -> Iterator[Element]:
    """Yield elements in order; one of unknown size is entered, so that its children follow."""
    offset = start
    for _ in range(_MAX_ELEMENTS):
        if offset == end:
            return
        element = _parse_element(file, offset, end)
        yield element
        offset = element.start if element.end is None else element.end
    raise ContainerError(f"more than {_MAX_ELEMENTS} elements")


def _parse_element(file: BinaryIO, offset: int, end: int) -> Element:
    file.seek(offset)
    header = file.read(min(12, end - offset))
    id_length = _number_length(header, 4, offset)
    size_length = _number_length(header[id_length:], 8, offset)
    start = offset + id_length + size_length
    field = int.from_bytes(header[id_length : id_length + size_length], "big")
    size = field & ((1 << 7 * size_length) - 1)
    element_id = int.from_bytes(header[:id_length], "big")
    if size == (1 << 7 * size_length) - 1:
        if element_id not in (_SEGMENT, _CLUSTER):
            raise ContainerError(f"element {element_id:#x} at byte {offset} has no size")
        return Element(element_id, start, None)
    if start + size > end:
        left = max(0, end - start)
        raise ContainerError(f"element {element_id:#x} at byte {offset} has {size} bytes, {left} are there")
    return Element(element_id, start, start + size)


def _number_length(header: bytes, longest: int, offset: int) -> int:
    """Return the byte length of a variable-size number: its leading zero bits plus one."""
    length = 9 - header[0].bit_length() if header and header[0] else 9
    if length > longest or length > len(header):
        raise ContainerError(f"incomplete element at byte {offset}")
    return length


def _list_children(file: BinaryIO, parent: Element) -> list[Element]:
    return list(iterate_elements(file, parent.start, parent.end)) if parent.end is not None else []


def _read_unsigned(file: BinaryIO, element: Element | None) -> int:
    return int.from_bytes(_read_content(file, element), "big")


def _read_content(file: BinaryIO, element: Element | None) -> bytes:
    if element is None or element.end is None or element.end - element.start > 8:
        return b""
    file.seek(element.start)
    return file.read(element.end - element.start)


def _read_size(file: BinaryIO, tracks: Element) -> tuple[int | None, int | None]:
    for track in _list_children(file, tracks):
        fields = {e.id: e for e in _list_children(file, track)} if track.id == _TRACK else {}
        if _read_unsigned(file, fields.get(_TRACK_TYPE)) == 1:
            video = {e.id: e for e in _list_children(file, fields[_VIDEO])} if _VIDEO in fields else {}
            return _read_pixels(file, video.get(_WIDTH)), _read_pixels(file, video.get(_HEIGHT))
    raise ContainerError("no video track")


def _read_pixels(file: BinaryIO, element: Element | None) -> int | None:
    value = _read_unsigned(file, element)
    return value if 0 < value <= _MAX_PX else None


def _read_duration(file: BinaryIO, info: Element | None) -> float | None:
    fields = {e.id: e for e in _list_children(file, info)} if info else {}
    scale_ns = _read_unsigned(file, fields.get(_TIMESTAMP_SCALE)) or 1_000_000
    raw = _read_content(file, fields.get(_DURATION))
    if len(raw) not in (4, 8):
        return None
    seconds: float = struct.unpack(">f" if len(raw) == 4 else ">d", raw)[0] * scale_ns / 1e9
    return seconds if math.isfinite(seconds) and seconds > 0 else None
