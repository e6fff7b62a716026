"""WebM without a decoder: checks that the file is complete, and reads size and duration."""

import math
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from media.containers import ContainerError, VideoFacts

_EBML, _SEGMENT, _CLUSTER, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
_TIMESTAMP_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK, _TRACK_TYPE, _AUDIO, _VIDEO, _WIDTH, _HEIGHT = 0xAE, 0x83, 2, 0xE0, 0xB0, 0xBA
# Top-level elements of a segment; they also end a cluster of unknown size.
_SEEK_HEAD, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS = 0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469
_FIRST_LEVEL: Final = frozenset({_CLUSTER, _INFO, _TRACKS, _SEEK_HEAD, _CUES, _CHAPTERS, _TAGS, _ATTACHMENTS})
_IN_CLUSTER: Final = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, 0xBF})
_KNOWN: Final = _FIRST_LEVEL | _IN_CLUSTER | {_EBML, _SEGMENT}
_TIMESTAMP, _SIMPLE_BLOCK, _GROUP, _BLOCK, _BLOCK_DURATION = 0xE7, 0xA3, 0xA0, 0xA1, 0x9B
_LAST_BLOCKS: Final = 256  # of the last cluster, to find its end
_MAX_ELEMENTS: Final = 5_000_000  # enough for a live recording; limits the time for a file of empty elements

_MAX_SECONDS: Final = 10 * 365 * 86_400.0
_MAX_PX: Final = 65_536  # limit of VP9; an invalid value of the 64-bit field would not fit its column


@dataclass(frozen=True, slots=True)
class Element:
    """An element: its id, and the start and end of its content in the file."""

    id: int
    start: int
    end: int | None  # None: unknown size (live)


class SegmentScan:
    """The first element of each id, and the last cluster with its timestamp and blocks if its size is unknown."""

    def __init__(self) -> None:
        self.first_elements: dict[int, Element] = {}
        self.cluster: Element | None = None
        self.cluster_start: Element | None = None
        self.blocks: deque[Element] = deque(maxlen=_LAST_BLOCKS)

    def add(self, element: Element) -> None:
        self.first_elements.setdefault(element.id, element)
        if element.id == _CLUSTER:
            self.cluster = element
            self.blocks.clear()
        else:
            self.add_to_cluster(element)

    def add_to_cluster(self, element: Element) -> None:
        if element.id == _TIMESTAMP:
            self.cluster_start = element
        elif element.id in (_SIMPLE_BLOCK, _GROUP):
            self.blocks.append(element)


def parse_webm(file: BinaryIO, size: int) -> VideoFacts:
    """Return size and duration of a WebM of `size` bytes; raises ContainerError if it is not complete."""
    walk = SegmentScan()
    end = walk_file(file, size, walk)
    tracks, info = walk.first_elements.get(_TRACKS), walk.first_elements.get(_INFO)
    if tracks is None or _CLUSTER not in walk.first_elements:
        raise ContainerError("no tracks" if tracks is None else "no data (cluster)")
    width, height, is_audio = _read_tracks(file, tracks)
    duration_s = _read_duration(file, info) or _measure_duration(file, info, walk)
    note = f"{size - end} bytes behind the last element ignored" if end < size else None
    return VideoFacts(width, height, duration_s, note, is_audio)


def walk_file(file: BinaryIO, size: int, walk: SegmentScan) -> int:
    """Collect the elements of the segment; returns where it ends. Raises ContainerError if it is not complete."""
    segment = next((e for e in iterate_elements(file, 0, size) if e.id == _SEGMENT), None)
    if segment is None:
        raise ContainerError("no segment: truncated or never finished")
    return _walk_segment(file, segment, size, walk)


def _walk_segment(file: BinaryIO, segment: Element, size: int, walk: SegmentScan) -> int:
    """Return the end of a segment; if it states no size, where its known elements end."""
    if segment.end is not None:
        for element in iterate_elements(file, segment.start, segment.end):
            walk.add(element)
        return segment.end
    end = segment.start
    try:
        for element in iterate_elements(file, segment.start, size):
            if element.id not in _KNOWN:
                break
            walk.add(element)
            end = element.start if element.end is None else element.end
    except ContainerError:
        file.seek(end)
        header = file.read(4)
        if _CLUSTER not in walk.first_elements or any(_starts_with(header, known) for known in _KNOWN):
            raise
    return end


def _starts_with(header: bytes, element_id: int) -> bool:
    """Return True if the bytes may be the beginning of an element with this id."""
    encoded = element_id.to_bytes((element_id.bit_length() + 7) // 8, "big")
    return header[: len(encoded)] == encoded[: len(header)]


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


def _read_tracks(file: BinaryIO, tracks: Element) -> tuple[int | None, int | None, bool]:
    """Return width and height of the first video track, and whether there is sound alone."""
    types = set()
    for track in _list_children(file, tracks):
        fields = {e.id: e for e in _list_children(file, track)} if track.id == _TRACK else {}
        types.add(_read_unsigned(file, fields.get(_TRACK_TYPE)))
        if 1 in types:
            video = {e.id: e for e in _list_children(file, fields[_VIDEO])} if _VIDEO in fields else {}
            return _read_pixels(file, video.get(_WIDTH)), _read_pixels(file, video.get(_HEIGHT)), False
    if _AUDIO in types:
        return None, None, True
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


def _measure_duration(file: BinaryIO, info: Element | None, walk: SegmentScan) -> float | None:
    """Return the end of a live recording in seconds, from the blocks of its last cluster."""
    fields = {e.id: e for e in _list_children(file, info)} if info else {}
    scale_ns = _read_unsigned(file, fields.get(_TIMESTAMP_SCALE)) or 1_000_000
    if walk.cluster is not None and walk.cluster.end is not None:
        for element in iterate_elements(file, walk.cluster.start, walk.cluster.end):
            walk.add_to_cluster(element)
    start = _read_unsigned(file, walk.cluster_start)
    ends = sorted({0, *(_read_block_end(file, element) for element in walk.blocks)})
    interval = ends[-1] - ends[-2] if len(ends) > 1 else 0  # the last block lasts as long as the one before
    seconds = (start + ends[-1] + interval) * scale_ns / 1e9
    return seconds if 0 < seconds < _MAX_SECONDS else None


def _read_block_end(file: BinaryIO, element: Element) -> int:
    """Return where a block ends, relative to its cluster; where it starts if it states no duration."""
    block, duration = element, 0
    if element.id == _GROUP:
        fields = {e.id: e for e in _list_children(file, element)}
        if _BLOCK not in fields:
            return 0
        block, duration = fields[_BLOCK], _read_unsigned(file, fields.get(_BLOCK_DURATION))
    file.seek(block.start)
    header = file.read(4)  # track number of 1 to 4 bytes, then the time
    length = 9 - header[0].bit_length() if header and header[0] else 1
    file.seek(block.start + length)
    return int.from_bytes(file.read(2), "big", signed=True) + duration
