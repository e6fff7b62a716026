"""MP4 without a decoder: checks that the file is complete, and reads size and duration."""

import array
import sys
from typing import BinaryIO, Final

from media.containers import ContainerError, VideoFacts
from media.iso_bmff import Box, BoxError, find_box, iterate_boxes, read_bytes, unpack_fields

_MAX_OFFSETS_BYTES: Final = 64 * 2**20  # of one chunk table; 8 million chunks


def parse_mp4(file: BinaryIO, size: int) -> VideoFacts:
    """Return size and duration of an MP4 of `size` bytes; raises ContainerError if it is not complete."""
    try:
        return _parse(file, size)
    except BoxError as error:
        raise ContainerError(str(error)) from error


def _parse(file: BinaryIO, size: int) -> VideoFacts:
    top = list(iterate_boxes(file, 0, size))
    moov = next((box for box in top if box.type == b"moov"), None)
    if moov is None:
        raise ContainerError("no index (moov): truncated or never finished")
    if not any(box.type == b"mdat" for box in top):
        raise ContainerError("no data (mdat)")
    tracks = [box for box in iterate_boxes(file, moov.start, moov.end) if box.type == b"trak"]
    video_tracks = [track for track in tracks if _read_handler(file, track) == b"vide"]
    if not video_tracks:
        raise ContainerError("no video track")
    for track in tracks:
        _check_offsets(file, track, size)
    width, height = _read_size(file, video_tracks[0])
    return VideoFacts(width, height, _read_duration(file, moov))


def _read_handler(file: BinaryIO, track: Box) -> bytes:
    hdlr = find_box(file, track, b"mdia", b"hdlr")
    return read_bytes(file, hdlr.start + 8, 4) if hdlr else b""


def _check_offsets(file: BinaryIO, track: Box, size: int) -> None:
    """Refuse a chunk table that points beyond the end of the file."""
    stbl = find_box(file, track, b"mdia", b"minf", b"stbl")
    for kind, code, width in ((b"stco", "I", 4), (b"co64", "Q", 8)):
        table = find_box(file, stbl, kind) if stbl else None
        if table is None:
            continue
        count = unpack_fields(file, table, ">I", 4)[0]
        if count * width > min(table.end - table.start - 8, _MAX_OFFSETS_BYTES):
            raise ContainerError(f"a table of {count} chunks does not fit its box")
        offsets = array.array(code, read_bytes(file, table.start + 8, count * width))
        if sys.byteorder == "little":
            offsets.byteswap()
        if offsets and max(offsets) >= size:
            raise ContainerError(f"the index points to byte {max(offsets)} of {size}")


def _read_size(file: BinaryIO, track: Box) -> tuple[int | None, int | None]:
    tkhd = find_box(file, track, b"tkhd")
    if tkhd is None:
        return None, None
    offset = 52 if unpack_fields(file, tkhd, ">B")[0] == 1 else 40  # version 1 has 64-bit times
    a, b, _, c, d, _, _, _, _, width, height = unpack_fields(file, tkhd, ">9i2I", offset)
    if a == d == 0 and b and c:  # rotated by 90 degrees
        width, height = height, width
    return (width >> 16) or None, (height >> 16) or None


def _read_duration(file: BinaryIO, moov: Box) -> float | None:
    mvhd = find_box(file, moov, b"mvhd")
    if mvhd is None:
        return None
    is_64_bit = unpack_fields(file, mvhd, ">B")[0] == 1
    scale, units = unpack_fields(file, mvhd, ">IQ" if is_64_bit else ">II", 20 if is_64_bit else 12)
    if not units:  # fragmented: the total is in the extension header
        mehd = find_box(file, moov, b"mvex", b"mehd")
        is_64_bit = mehd is not None and unpack_fields(file, mehd, ">B")[0] == 1
        units = unpack_fields(file, mehd, ">Q" if is_64_bit else ">I", 4)[0] if mehd else 0
    unknown = 0xFFFF_FFFF_FFFF_FFFF if is_64_bit else 0xFFFF_FFFF
    return units / scale if units and scale and units != unknown else None
