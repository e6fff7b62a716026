"""Sample tables of ISO base media tracks: where samples are stored, and how long they last."""

import array
import sys
from typing import BinaryIO, Final

from media.containers import ContainerError
from media.iso_bmff import Box, BoxError, find_box, iterate_boxes, read_bytes, unpack_fields

_MAX_TABLE_BYTES: Final = 16 * 2**20  # of one table; 4 million chunks
_STSD_ENTRY: Final = 86  # header and fixed fields of a visual sample entry
_BASE_OFFSET, _DEFAULT_DURATION, _DEFAULT_SIZE, _BASE_IS_MOOF = 0x1, 0x8, 0x10, 0x20000
_DATA_OFFSET, _FIRST_FLAGS, _DURATION, _SIZE, _FLAGS, _COMPOSITION = 0x1, 0x4, 0x100, 0x200, 0x400, 0x800


def check_samples(file: BinaryIO, track: Box, size: int) -> None:
    """Refuse a track whose last chunk does not end within the file."""
    table = find_box(file, track, b"mdia", b"minf", b"stbl")
    if table is None or _is_external(file, track):
        return
    offsets = _read_offsets(file, table)
    if not offsets:
        return
    index = max(range(len(offsets)), key=offsets.__getitem__)
    end = offsets[index] + (_measure_chunk(file, table, index, len(offsets)) if offsets[index] < size else 1)
    if end > size:
        raise ContainerError(f"the index points to byte {end - 1} of {size}")


def _is_external(file: BinaryIO, track: Box) -> bool:
    """Return True if the first data reference names another file."""
    references = find_box(file, track, b"mdia", b"minf", b"dinf", b"dref")
    if references is None or references.end - references.start < 20:
        return False
    return not unpack_fields(file, references, ">I", 16)[0] & 1


def _read_offsets(file: BinaryIO, table: Box) -> "array.array[int]":
    for kind, code, width in ((b"stco", "I", 4), (b"co64", "Q", 8)):
        if (box := find_box(file, table, kind)) is not None:
            return _read_array(file, box, 4, code, width)
    return array.array("I")


def _read_array(file: BinaryIO, box: Box, count_offset: int, code: str, width: int) -> "array.array[int]":
    """Return the numbers that follow their count; raises ContainerError if there are fewer."""
    count = unpack_fields(file, box, ">I", count_offset)[0]
    start = box.start + count_offset + 4
    if count * width > min(box.end - start, _MAX_TABLE_BYTES):
        raise ContainerError(f"a table of {count} entries does not fit its box ({box.type.decode('latin-1')})")
    return _unpack_numbers(read_bytes(file, start, count * width), code)


def _unpack_numbers(data: bytes, code: str = "I") -> "array.array[int]":
    numbers = array.array(code, data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _measure_chunk(file: BinaryIO, table: Box, index: int, chunks: int) -> int:
    """Return the bytes of one chunk, from its samples (`stsc`, `stsz`); 0 if they are not stated."""
    runs, sizes = find_box(file, table, b"stsc"), find_box(file, table, b"stsz")
    if runs is None or sizes is None:
        return 0
    count = unpack_fields(file, runs, ">I", 4)[0]
    if count * 12 > min(runs.end - runs.start - 8, _MAX_TABLE_BYTES):
        raise ContainerError(f"a table of {count} entries does not fit its box (stsc)")
    entries = _unpack_numbers(read_bytes(file, runs.start + 8, count * 12))
    first_sample, samples = 0, 0
    for run in range(count):
        first, samples = entries[run * 3] - 1, entries[run * 3 + 1]
        following = entries[run * 3 + 3] - 1 if run + 1 < count else chunks
        if following > index:
            first_sample += (index - first) * samples
            break
        first_sample += (following - first) * samples
    constant, total = unpack_fields(file, sizes, ">II", 4)
    samples = max(0, min(samples, total - first_sample))
    if constant:
        return constant * samples
    start = sizes.start + 12 + first_sample * 4
    if first_sample < 0 or samples * 4 > min(sizes.end - start, _MAX_TABLE_BYTES):
        raise ContainerError("a chunk has more samples than the table of their sizes")
    return sum(_unpack_numbers(read_bytes(file, start, samples * 4)))


def count_samples(file: BinaryIO, track: Box) -> int:
    sizes = find_box(file, track, b"mdia", b"minf", b"stbl", b"stsz")
    return unpack_fields(file, sizes, ">I", 8)[0] if sizes else 0


def read_track_size(file: BinaryIO, track: Box) -> tuple[int | None, int | None]:
    """Return width and height after rotation."""
    tkhd = find_box(file, track, b"tkhd")
    if tkhd is None:
        return None, None
    offset = 52 if unpack_fields(file, tkhd, ">B")[0] == 1 else 40  # version 1 has 64-bit times
    a, b, _, c, d, _, _, _, _, width, height = unpack_fields(file, tkhd, ">9i2I", offset)
    if a == d == 0 and b and c:  # rotated by 90 degrees
        width, height = height, width
    return (width >> 16) or None, (height >> 16) or None


def read_colors(file: BinaryIO, track: Box) -> tuple[int, int] | None:
    """Return colour primaries and transfer function of the first sample description; None if not stated."""
    descriptions = find_box(file, track, b"mdia", b"minf", b"stbl", b"stsd")
    if descriptions is None or descriptions.end - descriptions.start < 8 + _STSD_ENTRY:
        return None
    size = unpack_fields(file, descriptions, ">I", 8)[0]
    start, end = descriptions.start + 8 + _STSD_ENTRY, min(descriptions.end, descriptions.start + 8 + size)
    try:
        color = next((box for box in iterate_boxes(file, start, end) if box.type == b"colr"), None)
        if color is None or read_bytes(file, color.start, 4) != b"nclx":
            return None
        primaries, transfer = unpack_fields(file, color, ">HH", 4)
    except BoxError:
        return None
    return primaries, transfer


def scan_fragments(file: BinaryIO, top: list[Box], moov: Box, size: int) -> float | None:
    """Check that the samples of all fragments are in the file; returns the longest track in seconds."""
    scales, defaults = _read_track_defaults(file, moov)
    ends: dict[int, int] = {}
    for moof in (box for box in top if box.type == b"moof"):
        fragments = [box for box in iterate_boxes(file, moof.start, moof.end) if box.type == b"traf"]
        for index, traf in enumerate(fragments):
            _scan_fragment(file, moof, traf, defaults, ends, size, is_first=index == 0)
    return max((units / scales[track] for track, units in ends.items() if scales.get(track)), default=None)


def _read_track_defaults(file: BinaryIO, moov: Box) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
    """Return time scale, and default duration and size of samples, by track."""
    scales, defaults = {}, {}
    for track in (box for box in iterate_boxes(file, moov.start, moov.end) if box.type == b"trak"):
        tkhd, mdhd = find_box(file, track, b"tkhd"), find_box(file, track, b"mdia", b"mdhd")
        if tkhd and mdhd:
            number = unpack_fields(file, tkhd, ">I", 20 if unpack_fields(file, tkhd, ">B")[0] == 1 else 12)[0]
            scales[number] = unpack_fields(file, mdhd, ">I", 20 if unpack_fields(file, mdhd, ">B")[0] == 1 else 12)[0]
    extends = find_box(file, moov, b"mvex")
    for box in iterate_boxes(file, extends.start, extends.end) if extends else ():
        if box.type == b"trex":
            number, _, duration, sample_size, _ = unpack_fields(file, box, ">5I", 4)
            defaults[number] = duration, sample_size
    return scales, defaults


def _scan_fragment(
    file: BinaryIO,
    moof: Box,
    traf: Box,
    defaults: dict[int, tuple[int, int]],
    ends: dict[int, int],
    size: int,
    *,
    is_first: bool,
) -> None:
    tfhd = find_box(file, traf, b"tfhd")
    if tfhd is None:
        return
    flags, track = unpack_fields(file, tfhd, ">II")
    duration, sample_size = defaults.get(track, (0, 0))
    offset, base = 8, None
    if flags & _BASE_OFFSET:
        base, offset = unpack_fields(file, tfhd, ">Q", offset)[0], offset + 8
    offset += 4 if flags & 0x2 else 0
    if flags & _DEFAULT_DURATION:
        duration, offset = unpack_fields(file, tfhd, ">I", offset)[0], offset + 4
    if flags & _DEFAULT_SIZE:
        sample_size = unpack_fields(file, tfhd, ">I", offset)[0]
    if base is None and (flags & _BASE_IS_MOOF or is_first):
        base = moof.start - 8
    tfdt = find_box(file, traf, b"tfdt")
    if tfdt is not None:
        ends[track] = unpack_fields(file, tfdt, ">Q" if unpack_fields(file, tfdt, ">B")[0] == 1 else ">I", 4)[0]
    for run in (box for box in iterate_boxes(file, traf.start, traf.end) if box.type == b"trun"):
        units, last = _scan_run(file, run, duration, sample_size, base)
        ends[track] = ends.get(track, 0) + units
        if last is not None and last > size:
            raise ContainerError(f"a fragment points to byte {last - 1} of {size}")


def _scan_run(file: BinaryIO, run: Box, duration: int, sample_size: int, base: int | None) -> tuple[int, int | None]:
    """Return the duration of a run of samples, and where it ends in the file if it states where it starts."""
    flags, count = unpack_fields(file, run, ">II")
    offset, start = 8, None
    if flags & _DATA_OFFSET:
        relative, offset = unpack_fields(file, run, ">i", offset)[0], offset + 4
        start = None if base is None else base + relative
    offset += 4 if flags & _FIRST_FLAGS else 0
    fields = [flag for flag in (_DURATION, _SIZE, _FLAGS, _COMPOSITION) if flags & flag]
    width = len(fields)
    if count * width * 4 > min(run.end - run.start - offset, _MAX_TABLE_BYTES):
        raise ContainerError(f"a run of {count} samples does not fit its box")
    numbers = _unpack_numbers(read_bytes(file, run.start + offset, count * width * 4))
    durations = sum(numbers[fields.index(_DURATION) :: width]) if _DURATION in fields else count * duration
    sizes = sum(numbers[fields.index(_SIZE) :: width]) if _SIZE in fields else count * sample_size
    return durations, None if start is None else start + sizes
