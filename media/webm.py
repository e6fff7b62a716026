"""WebM without a decoder: whether the file is whole, and what its elements say of size and duration."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from media.containers import ContainerError, VideoFacts

_EBML, _SEGMENT, _CLUSTER, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
_TIMESTAMP_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK, _TRACK_TYPE, _VIDEO, _WIDTH, _HEIGHT = 0xAE, 0x83, 0xE0, 0xB0, 0xBA
# Elements of a segment's first level; inside a cluster of unknown size they end it.
_SEEK_HEAD, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS = 0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469
_FIRST_LEVEL: Final = frozenset({_CLUSTER, _INFO, _TRACKS, _SEEK_HEAD, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS})
_IN_CLUSTER: Final = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, 0xBF})
_MAX_ELEMENTS: Final = 5_000_000  # blocks of a live recording; a file of empty elements must not keep a worker busy

_MAX_PX: Final = 65_536  # of VP9; the field holds 64 bits, and rubbish would not fit its column


@dataclass(frozen=True, slots=True)
class Element:
    """An element: its id, and where its content starts and ends in the file."""

    id: int
    start: int
    end: int | None  # None: of unknown size (live)


def parse_webm(file: BinaryIO, size: int) -> VideoFacts:
    """
    Return what a WebM of `size` bytes says of itself.

    Raises:
        ContainerError: elements run past the end, or the tracks, the picture track or the data are missing.
    """
    segment = next((e for e in iterate_elements(file, 0, size) if e.id == _SEGMENT), None)
    if segment is None:
        raise ContainerError("no segment: cut, or never finished")
    found: dict[int, Element] = {}
    for element in iterate_elements(file, segment.start, size if segment.end is None else segment.end):
        if segment.end is None and element.id not in _FIRST_LEVEL | _IN_CLUSTER | {_EBML, _SEGMENT}:
            raise ContainerError(f"unknown element {element.id:#x} at byte {element.start}")
        found.setdefault(element.id, element)
    if _TRACKS not in found or _CLUSTER not in found:
        raise ContainerError("no tracks" if _TRACKS not in found else "no data (cluster)")
    width, height = _size(file, found[_TRACKS])
    return VideoFacts(width, height, _duration(file, found.get(_INFO)))


def iterate_elements(file: BinaryIO, start: int, end: int) -> Iterator[Element]:
    """Walk elements; one of unknown size is entered, so that its children come next."""
    at = start
    for _ in range(_MAX_ELEMENTS):
        if at == end:
            return
        element = _element(file, at, end)
        yield element
        at = element.start if element.end is None else element.end
    raise ContainerError(f"more than {_MAX_ELEMENTS} elements")


def _element(file: BinaryIO, at: int, end: int) -> Element:
    file.seek(at)
    header = file.read(min(12, end - at))
    id_length = _length(header, 4, at)
    size_length = _length(header[id_length:], 8, at)
    start = at + id_length + size_length
    field = int.from_bytes(header[id_length : id_length + size_length], "big")
    size = field & ((1 << 7 * size_length) - 1)
    identity = int.from_bytes(header[:id_length], "big")
    if size == (1 << 7 * size_length) - 1:
        if identity not in (_SEGMENT, _CLUSTER):
            raise ContainerError(f"element {identity:#x} at byte {at} has no size")
        return Element(identity, start, None)
    if start + size > end:
        raise ContainerError(f"element {identity:#x} at byte {at} has {size} bytes, {max(0, end - start)} are there")
    return Element(identity, start, start + size)


def _length(header: bytes, longest: int, at: int) -> int:
    """Return how many bytes a variable-size number has: one more than the zero bits it starts with."""
    length = 9 - header[0].bit_length() if header and header[0] else 9
    if length > longest or length > len(header):
        raise ContainerError(f"ends within, or has no, element at byte {at}")
    return length


def _inside(file: BinaryIO, parent: Element) -> list[Element]:
    return list(iterate_elements(file, parent.start, parent.end)) if parent.end is not None else []


def _unsigned(file: BinaryIO, element: Element | None) -> int:
    return int.from_bytes(_content(file, element), "big")


def _content(file: BinaryIO, element: Element | None) -> bytes:
    """Return the content of an element that holds a number."""
    if element is None or element.end is None or element.end - element.start > 8:
        return b""
    file.seek(element.start)
    return file.read(element.end - element.start)


def _size(file: BinaryIO, tracks: Element) -> tuple[int | None, int | None]:
    for track in _inside(file, tracks):
        fields = {e.id: e for e in _inside(file, track)} if track.id == _TRACK else {}
        if _unsigned(file, fields.get(_TRACK_TYPE)) == 1:
            video = {e.id: e for e in _inside(file, fields[_VIDEO])} if _VIDEO in fields else {}
            return _pixels(file, video.get(_WIDTH)), _pixels(file, video.get(_HEIGHT))
    raise ContainerError("no picture track")


def _pixels(file: BinaryIO, element: Element | None) -> int | None:
    value = _unsigned(file, element)
    return value if 0 < value <= _MAX_PX else None


def _duration(file: BinaryIO, info: Element | None) -> float | None:
    fields = {e.id: e for e in _inside(file, info)} if info else {}
    scale_ns = _unsigned(file, fields.get(_TIMESTAMP_SCALE)) or 1_000_000
    raw = _content(file, fields.get(_DURATION))
    if len(raw) not in (4, 8):
        return None
    seconds: float = struct.unpack(">f" if len(raw) == 4 else ">d", raw)[0] * scale_ns / 1e9
    return seconds if math.isfinite(seconds) and seconds > 0 else None
