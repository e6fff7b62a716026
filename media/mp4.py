"""MP4, and the tracks of ISO base media: where samples are stored, how long they last, size and colours."""

import array
import sys
from typing import Final

from media.containers import ContainerError, Data, FileFacts
from media.iso_bmff import Box, BoxError, list_top_boxes

_MAX_TABLE_BYTES: Final = 16 * 2**20  # of one table; 4 million chunks
_STSD_ENTRY: Final = 86  # header and fixed fields of a visual sample entry
_BASE_OFFSET, _DEFAULT_DURATION, _DEFAULT_SIZE, _BASE_IS_MOOF = 0x1, 0x8, 0x10, 0x20000
_DATA_OFFSET, _FIRST_FLAGS, _DURATION, _SIZE, _FLAGS, _COMPOSITION = 0x1, 0x4, 0x100, 0x200, 0x400, 0x800


def parse_mp4(data: Data) -> FileFacts:
    """Return size and duration of an MP4; raises ContainerError if it is not complete."""
    top, note = list_top_boxes(data)
    moov = next((box for box in top if box.type == b"moov"), None)
    if moov is None:
        raise ContainerError("no index (moov): truncated or never finished")
    if not any(box.type == b"mdat" for box in top):
        raise ContainerError("no data (mdat)")
    tracks = moov.list_children(b"trak")
    handlers = [read_handler(track) for track in tracks]
    video_track = next((track for track, handler in zip(tracks, handlers, strict=True) if handler == b"vide"), None)
    if video_track is None and b"soun" not in handlers:
        raise ContainerError("no video track")
    for track in tracks:
        check_samples(track)
    fragments_seconds = _scan_fragments(top, moov)
    width, height = read_track_size(video_track) if video_track else (None, None)
    duration_s = max(_read_duration(moov), fragments_seconds)  # moov may state the first fragment only
    return FileFacts(duration_s or None, note, None, width, height, is_audio=video_track is None)


def read_handler(track: Box) -> bytes:
    hdlr = track.find(b"mdia", b"hdlr")
    return hdlr.read(8, 4) if hdlr else b""


def _read_duration(moov: Box) -> float:
    """Return seconds, 0 if they are not stated."""
    mvhd = moov.find(b"mvhd")
    if mvhd is None:
        return 0.0
    header = mvhd
    scale, units = mvhd.unpack_versioned(">8xII", ">16xIQ")
    if not units and (mehd := moov.find(b"mvex", b"mehd")):  # fragmented: the total is in the extension header
        header, (units,) = mehd, mehd.unpack_versioned(">I", ">Q")
    is_64_bit = header.unpack(">B")[0] == 1
    unknown = 0xFFFF_FFFF_FFFF_FFFF if is_64_bit else 0xFFFF_FFFF
    return units / scale if scale and units != unknown else 0.0


def check_samples(track: Box) -> None:
    """Refuse a track whose last chunk does not end within the file."""
    table = track.find(b"mdia", b"minf", b"stbl")
    if table is None or _is_external(track):
        return
    offsets = _read_offsets(table)
    if not offsets:
        return
    size = len(track.data)
    index = max(range(len(offsets)), key=offsets.__getitem__)
    end = offsets[index] + (_measure_chunk(table, index, len(offsets)) if offsets[index] < size else 1)
    if end > size:
        raise ContainerError(f"the index points to byte {end - 1} of {size}")


def _is_external(track: Box) -> bool:
    """Return True if the first data reference names another file."""
    references = track.find(b"mdia", b"minf", b"dinf", b"dref")
    if references is None or references.end - references.start < 20:
        return False
    return not references.unpack(">I", 16)[0] & 1


def _read_offsets(table: Box) -> "array.array[int]":
    for kind, code, width in ((b"stco", "I", 4), (b"co64", "Q", 8)):
        if (box := table.find(kind)) is not None:
            return _read_table(box, code, width)
    return array.array("I")


def _read_table(box: Box, code: str, entry_bytes: int) -> "array.array[int]":
    """Return the numbers that follow the count of entries; raises ContainerError if there are fewer."""
    count = box.unpack(">I", 4)[0]
    if count * entry_bytes > min(box.end - box.start - 8, _MAX_TABLE_BYTES):
        raise ContainerError(f"a table of {count} entries does not fit its box ({box.name})")
    return _unpack_numbers(box.read(8, count * entry_bytes), code)


def _unpack_numbers(data: bytes, code: str = "I") -> "array.array[int]":
    numbers = array.array(code, data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _measure_chunk(table: Box, index: int, chunks: int) -> int:
    """Return the bytes of one chunk, from its samples (`stsc`, `stsz`); 0 if they are not stated."""
    runs, sizes = table.find(b"stsc"), table.find(b"stsz")
    if runs is None or sizes is None:
        return 0
    entries = _read_table(runs, "I", 12)
    first_sample, samples = 0, 0
    for run in range(0, len(entries), 3):
        first, samples = entries[run] - 1, entries[run + 1]
        following = entries[run + 3] - 1 if run + 3 < len(entries) else chunks
        first_sample += (min(index, following) - first) * samples
        if following > index:
            break
    constant, total = sizes.unpack(">II", 4)
    samples = max(0, min(samples, total - first_sample))
    if constant:
        return constant * samples
    offset = 12 + first_sample * 4
    if first_sample < 0 or samples * 4 > min(sizes.end - sizes.start - offset, _MAX_TABLE_BYTES):
        raise ContainerError("a chunk has more samples than the table of their sizes")
    return sum(_unpack_numbers(sizes.read(offset, samples * 4)))


def count_samples(track: Box) -> int:
    sizes = track.find(b"mdia", b"minf", b"stbl", b"stsz")
    return sizes.unpack(">I", 8)[0] if sizes else 0


def read_track_size(track: Box) -> tuple[int | None, int | None]:
    """Return width and height after rotation."""
    tkhd = track.find(b"tkhd")
    if tkhd is None:
        return None, None
    a, b, _, c, d, _, _, _, _, width, height = tkhd.unpack_versioned(">36x9i2I", ">48x9i2I")
    if a == d == 0 and b and c:  # rotated by 90 degrees
        width, height = height, width
    return (width >> 16) or None, (height >> 16) or None


def read_colors(track: Box) -> tuple[int, int] | None:
    """Return colour primaries and transfer function of the first sample description; None if not stated."""
    descriptions = track.find(b"mdia", b"minf", b"stbl", b"stsd")
    if descriptions is None or descriptions.end - descriptions.start < 8 + _STSD_ENTRY:
        return None
    end = min(descriptions.end, descriptions.start + 8 + descriptions.unpack(">I", 8)[0])
    entry = Box(track.data, b"", descriptions.start, descriptions.start + 8 + _STSD_ENTRY, end)
    try:
        color = entry.find(b"colr")
        return read_nclx(color) if color else None
    except BoxError:
        return None


def read_nclx(color: Box) -> tuple[int, int] | None:
    """Return colour primaries and transfer function of a `colr` box; None if it has a profile."""
    if color.read(0, 4) != b"nclx":
        return None
    primaries, transfer = color.unpack(">HH", 4)
    return primaries, transfer


def _scan_fragments(top: list[Box], moov: Box) -> float:
    """Check that the samples of all fragments are in the file; returns the longest track in seconds."""
    scales, defaults = _read_track_defaults(moov)
    ends: dict[int, int] = {}
    for moof in (box for box in top if box.type == b"moof"):
        for index, traf in enumerate(moof.list_children(b"traf")):
            _scan_fragment(moof, traf, defaults, ends, is_first=index == 0)
    return max((units / scales[track] for track, units in ends.items() if scales.get(track)), default=0.0)


def _read_track_defaults(moov: Box) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
    """Return time scale, and default duration and size of samples, by track."""
    scales, defaults = {}, {}
    for track in moov.list_children(b"trak"):
        tkhd, mdhd = track.find(b"tkhd"), track.find(b"mdia", b"mdhd")
        if tkhd and mdhd:
            number = tkhd.unpack_versioned(">8xI", ">16xI")[0]
            scales[number] = mdhd.unpack_versioned(">8xI", ">16xI")[0]
    extends = moov.find(b"mvex")
    for trex in extends.list_children(b"trex") if extends else ():
        number, _, duration, sample_size, _ = trex.unpack(">5I", 4)
        defaults[number] = duration, sample_size
    return scales, defaults


def _scan_fragment(
    moof: Box, traf: Box, defaults: dict[int, tuple[int, int]], ends: dict[int, int], *, is_first: bool
) -> None:
    tfhd = traf.find(b"tfhd")
    if tfhd is None:
        return
    flags, track = tfhd.unpack(">II")
    duration, sample_size = defaults.get(track, (0, 0))
    offset, base = 8, None
    if flags & _BASE_OFFSET:
        base, offset = tfhd.unpack(">Q", offset)[0], offset + 8
    offset += 4 if flags & 0x2 else 0
    if flags & _DEFAULT_DURATION:
        duration, offset = tfhd.unpack(">I", offset)[0], offset + 4
    if flags & _DEFAULT_SIZE:
        sample_size = tfhd.unpack(">I", offset)[0]
    if base is None and (flags & _BASE_IS_MOOF or is_first):
        base = moof.offset
    tfdt = traf.find(b"tfdt")
    if tfdt is not None:
        ends[track] = tfdt.unpack_versioned(">I", ">Q")[0]
    for run in traf.list_children(b"trun"):
        units, last = _scan_run(run, duration, sample_size, base)
        ends[track] = ends.get(track, 0) + units
        if last is not None and last > len(run.data):
            raise ContainerError(f"a fragment points to byte {last - 1} of {len(run.data)}")


def _scan_run(run: Box, duration: int, sample_size: int, base: int | None) -> tuple[int, int | None]:
    """Return the duration of a run of samples, and where it ends in the file if it states where it starts."""
    flags, count = run.unpack(">II")
    offset, start = 8, None
    if flags & _DATA_OFFSET:
        relative, offset = run.unpack(">i", offset)[0], offset + 4
        start = None if base is None else base + relative
    offset += 4 if flags & _FIRST_FLAGS else 0
    fields = [flag for flag in (_DURATION, _SIZE, _FLAGS, _COMPOSITION) if flags & flag]
    width = len(fields)
    if count * width * 4 > min(run.end - run.start - offset, _MAX_TABLE_BYTES):
        raise ContainerError(f"a run of {count} samples does not fit its box")
    numbers = _unpack_numbers(run.read(offset, count * width * 4))
    durations = sum(numbers[fields.index(_DURATION) :: width]) if _DURATION in fields else count * duration
    sizes = sum(numbers[fields.index(_SIZE) :: width]) if _SIZE in fields else count * sample_size
    return durations, None if start is None else start + sizes
