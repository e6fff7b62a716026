"""WebM without a decoder: checks that the file is complete, and reads size and duration."""

import math
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from media.containers import ContainerError, Data, FileFacts

EBML, SEGMENT, CLUSTER, INFO, TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
TIMESTAMP_SCALE, DURATION = 0x2AD7B1, 0x4489
TRACK, TRACK_TYPE, _VIDEO, _WIDTH, _HEIGHT = 0xAE, 0x83, 0xE0, 0xB0, 0xBA
VIDEO_TYPE, AUDIO_TYPE = 1, 2
# Top-level elements of a segment; they also end a cluster of unknown size.
SEEK_HEAD, CUES, _CHAPTERS, _TAGS, _ATTACHMENTS = 0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469
_FIRST_LEVEL: Final = frozenset({CLUSTER, INFO, TRACKS, SEEK_HEAD, CUES, _CHAPTERS, _TAGS, _ATTACHMENTS})
IN_CLUSTER: Final = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF})
VOID, _CRC32 = 0xEC, 0xBF
_KNOWN: Final = _FIRST_LEVEL | IN_CLUSTER | {VOID, _CRC32, EBML, SEGMENT}
_TIMESTAMP, _SIMPLE_BLOCK, _GROUP, _BLOCK, _BLOCK_DURATION = 0xE7, 0xA3, 0xA0, 0xA1, 0x9B
_LAST_BLOCKS: Final = 256  # of the last cluster, to find its end
_MAX_ELEMENTS: Final = 5_000_000  # enough for a live recording; limits the time for a file of empty elements

_MAX_SECONDS: Final = 10 * 365 * 86_400.0
_MAX_PX: Final = 65_536  # limit of VP9; an invalid value of the 64-bit field would not fit its column


@dataclass(frozen=True, slots=True)
class Element:
    """An element: its id, where it starts in the data, and the start and end of its content."""

    data: Data
    id: int
    offset: int
    start: int
    end: int | None  # None: unknown size (live)

    @property
    def next(self) -> int:
        """Where the next element starts: one of unknown size is entered."""
        return self.start if self.end is None else self.end

    def list_children(self) -> list["Element"]:
        return list_elements(self.data, self.start, self.next)

    def map_children(self) -> dict[int, "Element"]:
        return {child.id: child for child in self.list_children()}


def parse_webm(data: Data) -> FileFacts:
    """Return size and duration of a WebM; raises ContainerError if it is not complete."""
    elements, end = scan_segment(data)
    tracks, cluster = elements.get(TRACKS), elements.get(CLUSTER)
    if tracks is None or cluster is None:
        raise ContainerError("no tracks" if tracks is None else "no data (cluster)")
    width, height, is_audio = _read_tracks(tracks)
    fields = elements[INFO].map_children() if INFO in elements else {}
    units = _read_duration(fields.get(DURATION)) or _measure_duration(cluster, end)
    seconds = units * (read_unsigned(fields.get(TIMESTAMP_SCALE)) or 1_000_000) / 1e9
    note = f"{len(data) - end} bytes behind the last element ignored" if end < len(data) else None
    duration_s = seconds if 0 < seconds < _MAX_SECONDS else None
    return FileFacts(duration_s, note, None, width, height, is_audio)


def scan_segment(data: Data) -> tuple[dict[int, Element], int]:
    """
    Return the first element of each id, but the last cluster, and where the segment ends.

    If it states no size, it ends with its last known element. Raises ContainerError if it is not complete.
    """
    segment = next((e for e in iterate_elements(data, 0, len(data)) if e.id == SEGMENT), None)
    if segment is None:
        raise ContainerError("no segment: truncated or never finished")
    elements: dict[int, Element] = {}
    end = segment.start
    try:
        for element in iterate_elements(data, segment.start, len(data) if segment.end is None else segment.end):
            if segment.end is None and element.id not in _KNOWN:
                break
            if element.id == CLUSTER or element.id not in elements:
                elements[element.id] = element
            end = element.next
    except ContainerError:
        header = data[end : end + 4]
        is_known = any(_starts_with(header, known) for known in _KNOWN)
        if segment.end is not None or CLUSTER not in elements or is_known:
            raise
    return elements, end


def _starts_with(header: bytes, element_id: int) -> bool:
    """Return True if the bytes may be the beginning of an element with this id."""
    encoded = element_id.to_bytes((element_id.bit_length() + 7) // 8, "big")
    return header[: len(encoded)] == encoded[: len(header)]


def iterate_elements(data: Data, start: int, end: int) -> Iterator[Element]:
    """Yield elements in order; one of unknown size is entered, so that its children follow."""
    offset = start
    for _ in range(_MAX_ELEMENTS):
        if offset == end:
            return
        element = _parse_element(data, offset, end)
        yield element
        offset = element.next
    raise ContainerError(f"more than {_MAX_ELEMENTS} elements")


def list_elements(data: Data, start: int, end: int) -> list[Element]:
    return list(iterate_elements(data, start, end))


def _parse_element(data: Data, offset: int, end: int) -> Element:
    header = data[offset : min(offset + 12, end)]
    id_length = _number_length(header, 4, offset)
    size_length = _number_length(header[id_length:], 8, offset)
    start = offset + id_length + size_length
    field = int.from_bytes(header[id_length : id_length + size_length], "big")
    size = field & ((1 << 7 * size_length) - 1)
    element_id = int.from_bytes(header[:id_length], "big")
    if size == (1 << 7 * size_length) - 1:
        if element_id not in (SEGMENT, CLUSTER):
            raise ContainerError(f"element {element_id:#x} at byte {offset} has no size")
        return Element(data, element_id, offset, start, None)
    if start + size > end:
        left = max(0, end - start)
        raise ContainerError(f"element {element_id:#x} at byte {offset} has {size} bytes, {left} are there")
    return Element(data, element_id, offset, start, start + size)


def _number_length(header: bytes, longest: int, offset: int) -> int:
    """Return the byte length of a variable-size number: its leading zero bits plus one."""
    length = 9 - header[0].bit_length() if header and header[0] else 9
    if length > longest or length > len(header):
        raise ContainerError(f"incomplete element at byte {offset}")
    return length


def read_unsigned(element: Element | None) -> int:
    return int.from_bytes(_read_content(element), "big")


def _read_content(element: Element | None) -> bytes:
    """Return up to 8 bytes; none of a longer element."""
    return element.data[element.start : element.next] if element and element.next - element.start <= 8 else b""


def _read_tracks(tracks: Element) -> tuple[int | None, int | None, bool]:
    """Return width and height of the first video track, and whether there is sound alone."""
    types = set()
    for track in tracks.list_children():
        fields = track.map_children() if track.id == TRACK else {}
        types.add(read_unsigned(fields.get(TRACK_TYPE)))
        if VIDEO_TYPE in types:
            video = fields[_VIDEO].map_children() if _VIDEO in fields else {}
            return _read_pixels(video.get(_WIDTH)), _read_pixels(video.get(_HEIGHT)), False
    if AUDIO_TYPE in types:
        return None, None, True
    raise ContainerError("no video track")


def _read_pixels(element: Element | None) -> int | None:
    value = read_unsigned(element)
    return value if 0 < value <= _MAX_PX else None


def _read_duration(element: Element | None) -> float:
    """Return the stated duration in units of the time scale, 0 without a usable one."""
    raw = _read_content(element)
    if len(raw) not in (4, 8):
        return 0.0
    units: float = struct.unpack(">f" if len(raw) == 4 else ">d", raw)[0]
    return units if math.isfinite(units) and units > 0 else 0.0


def _measure_duration(cluster: Element, end: int) -> int:
    """Return the end of a live recording in units of the time scale, from the blocks of its last cluster."""
    start, blocks = 0, deque[Element](maxlen=_LAST_BLOCKS)
    for element in iterate_elements(cluster.data, cluster.start, end if cluster.end is None else cluster.end):
        if element.id == _TIMESTAMP:
            start = read_unsigned(element)
        elif element.id in (_SIMPLE_BLOCK, _GROUP):
            blocks.append(element)
    ends = sorted({0, *map(_read_block_end, blocks)})
    interval = ends[-1] - ends[-2] if len(ends) > 1 else 0  # the last block lasts as long as the one before
    return start + ends[-1] + interval


def _read_block_end(element: Element) -> int:
    """Return where a block ends, relative to its cluster; where it starts if it states no duration."""
    block, duration = element, 0
    if element.id == _GROUP:
        fields = element.map_children()
        if _BLOCK not in fields:
            return 0
        block, duration = fields[_BLOCK], read_unsigned(fields.get(_BLOCK_DURATION))
    first = block.data[block.start : block.start + 1]  # of the track number of 1 to 4 bytes, then the time
    time = block.start + (9 - first[0].bit_length() if first and first[0] else 1)
    return int.from_bytes(block.data[time : time + 2], "big", signed=True) + duration
