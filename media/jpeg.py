"""JPEG without a decoder: its segments, and a variant that shows whether the entropy-coded data ends early."""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from media.containers import ContainerError, Data, ImageScan, Piece, check_parts

# In a JPEG scan a marker is FF followed by anything but 00 (stuffing), a restart marker or FF (a fill byte).
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")  # without fill bytes: `\xff+` takes 20 times as long
SOI, EOI, TEM, ENTROPY = 0xD8, 0xD9, 0x01, 0x00
_SOS, _COM, _DHT, _DQT, _DRI = 0xDA, 0xFE, 0xC4, 0xDB, 0xDD
_LOST: Final = bytes(32)  # in a table: a quantizer is never 0, and a code stands for one value
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = 0xC2
_HUFFMAN: Final = frozenset({0xC0, 0xC1, 0xC2})
_NEVER: Final = 16
_FILLERS: Final = 2
_LOOKAHEAD: Final = b"\xff\x00" * 8  # libjpeg reads 64 bits ahead
_FILLER_BYTES: Final = 1024  # more than some blocks of any quality need


@dataclass(slots=True)
class JpegScan(ImageScan):
    """Adds the type of the frame, the bits not sent yet of each coefficient, and the ranges of entropy-coded data."""

    frame_marker: int = 0
    missing_bits: dict[int, list[int]] = field(default_factory=dict)  # by component
    block_pixels: int = 64  # of a unit of the interleaved components
    has_restarts: bool = False
    has_unused_table: bool = False  # a scan must follow a Huffman table
    entropy: list[tuple[int, int]] = field(default_factory=list)


def iterate_segments(data: Data) -> Iterator[tuple[int, int, int]]:
    """
    Yield marker, start and end of each segment after SOI, to EOI or where the next one does not fit.

    A segment starts behind its marker, with its length if it has one. Entropy-coded data has the marker ENTROPY.
    """
    offset, is_entropy = 2, False
    while match := _MARKER.search(data, offset):
        marker, start = data[match.start() + 1], match.end()
        if is_entropy:
            yield ENTROPY, offset, match.start()
        has_length = marker not in (SOI, EOI, TEM)
        offset = start + max(2, int.from_bytes(data[start : start + 2], "big")) if has_length else start
        is_entropy = marker == _SOS or (is_entropy and marker == TEM)
        if offset > len(data):
            return
        yield marker, start, offset
        if marker == EOI:
            return


def scan_jpeg(data: Data) -> JpegScan:
    """Walk a JPEG to the end of its first image; raises ContainerError if it does not get there."""
    scan = JpegScan(0, 0, 1, [(0, 2)])
    for marker, start, end in iterate_segments(data):
        check_parts(len(scan.pieces))
        if marker == EOI:
            scan.pieces.append(b"\xff\xd9")
            _check_scans(scan)
            if scan.has_restarts:
                restarts = (_RESTART.finditer(data, *run) for run in scan.entropy)
                scan.added_pieces += 2 * sum(1 for matches in restarts for _ in matches)
            return scan
        if marker == ENTROPY:
            scan.pieces.append((start, end))
            scan.entropy.append((start, end))
            scan.added_pieces += 10
        elif marker in (SOI, TEM):
            scan.pieces.append((start - 2, end))
        else:
            _add_segment(data, scan, marker, start, end)
    raise ContainerError("truncated: its end is missing")


def _add_segment(data: Data, scan: JpegScan, marker: int, start: int, end: int) -> None:
    content = data[start + 2 : min(end, start + 32)]
    scan.has_unused_table = marker == _DHT or (scan.has_unused_table and marker != _SOS)
    if marker in (_DHT, _DQT) and _LOST in data[start + 2 : end]:
        raise ContainerError("damaged: a table of its pixel data has been lost")
    if marker == _DRI:
        scan.has_restarts |= any(content)
    if marker in _FRAMES and not scan.frame_marker and len(content) >= 6:
        scan.frame_marker = marker
        scan.height_px, scan.width_px = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
        factors = data[start + 9 : end : 3]
        scan.block_pixels = 64 * (max(factors) >> 4) * max(f & 15 for f in factors) if len(factors) > 1 else 64
        scan.missing_bits = {component: [_NEVER] * 64 for component in data[start + 8 : end : 3]}
    if marker == _SOS and content and len(content) >= 4 + 2 * content[0]:
        first, last, bits = content[1 + 2 * content[0] : 4 + 2 * content[0]]
        if scan.frame_marker != _PROGRESSIVE:
            first, last, bits = 0, 63, 0
        for component in content[1 : 1 + 2 * content[0] : 2]:
            if component in scan.missing_bits:
                scan.missing_bits[component][first : last + 1] = [bits & 15] * (min(63, last) + 1 - first)
    if _is_decoded(marker, content, end - start - 2):
        scan.pieces.append((start - 2, end))


def _is_decoded(marker: int, content: bytes, size: int) -> bool:
    """Return False for metadata; colours depend on JFIF, Adobe's flag and the profile."""
    if marker == 0xE0:
        return content.startswith(b"JFIF\0") and size >= 14
    if marker == 0xE1:
        return content.startswith(b"Exif\0\0")
    if marker == 0xE2:
        return content.startswith(b"ICC_PROFILE\0")
    if marker == 0xEE:
        return content.startswith(b"Adobe") and size >= 12
    return not (0xE0 <= marker <= 0xEF or marker == _COM)


def _check_scans(scan: JpegScan) -> None:
    if not scan.frame_marker:
        raise ContainerError("damaged: it has no frame")
    if any(bits[0] == _NEVER for bits in scan.missing_bits.values()):
        raise ContainerError("truncated: the data of a colour component is missing")
    if scan.has_unused_table:
        raise ContainerError("truncated: its last scan is missing")
    if any(map(any, scan.missing_bits.values())):
        scan.notes.append("the JPEG has fewer scans than its full quality needs")


def build_unended(scan: JpegScan) -> list[Piece] | None:
    """
    Return the image with 64 bits in place of its end: a decoder that has all blocks needs no more.

    No code has only ones, so that each costs a decoder 16 bits and adds no more than the end of a block. None where
    several runs of data may end early, or where the bits may stand for more than a block of all components.
    """
    if scan.frame_marker not in _HUFFMAN - {_PROGRESSIVE} or scan.has_restarts or len(scan.entropy) != 1:
        return None
    return [*scan.pieces[:-1], _LOOKAHEAD] if len(scan.missing_bits) > 2 else None


def build_filled_variants(data: Data, scan: JpegScan) -> list[list[Piece]]:
    """
    Return the image with random bytes at the end of each run of entropy-coded data.

    A decoder that has all blocks of a run skips what follows, and the pixels are the same. If the run ends early, it
    decodes the bytes instead of the grey that it substitutes. A second variant is needed for progressive files: the
    first bytes may happen to code an empty run. None for arithmetic coding, where a run may end early by design.
    """
    if scan.frame_marker not in _HUFFMAN:
        return []
    count = _FILLERS if scan.frame_marker == _PROGRESSIVE else 1
    # No FF: it would be a marker.
    fillers = (bytes(random.Random(seed).choices(range(255), k=_FILLER_BYTES)) for seed in range(count))  # noqa: S311
    return [_fill(data, scan, filler) for filler in fillers]


def _fill(data: Data, scan: JpegScan, filler: bytes) -> list[Piece]:
    ends = {end for _, end in scan.entropy}
    intervals = [bytes([0xFF, 0xD0 + index % 8]) + filler for index in range(16)]
    pieces: list[Piece] = []
    for piece in scan.pieces:
        if isinstance(piece, bytes) or piece[1] not in ends:
            pieces.append(piece)
            continue
        start, following = piece[0], 0
        for match in itertools.islice(_RESTART.finditer(data, *piece), None if scan.has_restarts else 1):
            end = _skip_fill_bytes(data, start, match.start())
            pieces += [(start, end), filler]
            start, following = end, (data[match.end() - 1] + 1) % 8
        pieces += [(start, _skip_fill_bytes(data, start, piece[1])), filler]
        if scan.has_restarts:  # further intervals: one that is missing has no marker to resume at
            pieces += intervals[following : following + 8]
    return pieces


def _skip_fill_bytes(data: Data, start: int, end: int) -> int:
    """Return the end of a run without its fill bytes: one of them and what follows it would be a marker."""
    while end > start and data[end - 1] == 0xFF:
        end -= 1
    return end
