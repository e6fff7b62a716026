"""AVIF without a decoder: are all extents of its items, or all samples of its track, in the file?"""

from collections.abc import Iterator
from typing import BinaryIO, Final

from media import iso_samples
from media.containers import ContainerError
from media.image_scan import ImageScan, Piece
from media.iso_bmff import Box, BoxError, find_box, iterate_boxes, list_top_boxes, read_bytes, unpack_fields

_METADATA_ITEMS: Final = frozenset({b"Exif", b"mime"})
_FULL_BOX: Final = 4  # version and flags
_MAX_ITEMS: Final = 65_536


def scan_avif(file: BinaryIO, size: int) -> ImageScan:
    """Walk an AVIF; raises ContainerError if data of an item or sample is not in the file."""
    try:
        return _scan(file, size)
    except BoxError as error:
        raise ContainerError(f"truncated or damaged: {error}") from error


def _scan(file: BinaryIO, size: int) -> ImageScan:
    top, note = list_top_boxes(file, size)
    boxes = {box.type: box for box in reversed(top)}
    meta, moov = boxes.get(b"meta"), boxes.get(b"moov")
    if meta is None and moov is None:
        raise ContainerError("damaged: it has no index (meta)")
    scan = ImageScan(0, 0, 1, [], [note] if note else [])
    end = top[-1].end
    patches: list[tuple[int, bytes]] = []
    if meta is not None:
        content = Box(b"meta", meta.start + _FULL_BOX, meta.end)
        _check_extents(file, content, size)
        _read_properties(file, content, scan)
        patches = _patch_metadata_items(file, content)
    if moov is not None:
        _scan_track(file, moov, size, scan)
    scan.pieces = _build_pieces(end, patches)
    return scan


def _check_extents(file: BinaryIO, meta: Box, size: int) -> None:
    location = find_box(file, meta, b"iloc")
    if location is None:
        return
    idat = find_box(file, meta, b"idat")
    for method, offset, length in _iterate_extents(read_bytes(file, location.start, location.end - location.start)):
        limit = size if method == 0 else (idat.end - idat.start if idat else 0)
        if method in (0, 1) and offset + length > limit:
            raise ContainerError(f"truncated: an image ends at byte {offset + length} of {limit}")


def _iterate_extents(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield construction method, offset and length of each extent of an `iloc` box (ISO/IEC 14496-12, 8.11.3)."""
    reader = FieldReader(data)
    version = reader.read(1)
    reader.read(3)
    sizes = reader.read(1), reader.read(1)
    offset_size, length_size, base_size, index_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4, sizes[1] & 15
    wide = 4 if version == 2 else 2
    for _ in range(min(reader.read(wide), _MAX_ITEMS)):
        reader.read(wide)
        method = reader.read(2) & 15 if version in (1, 2) else 0
        reader.read(2)
        base = reader.read(base_size)
        for _ in range(reader.read(2)):
            if version in (1, 2):
                reader.read(index_size)
            offset = reader.read(offset_size)
            yield method, base + offset, reader.read(length_size)


class FieldReader:
    """Big-endian numbers in sequence; raises BoxError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data, self._offset = data, 0

    def read(self, size: int) -> int:
        self._offset += size
        if self._offset > len(self._data):
            raise BoxError("a table ends early")
        return int.from_bytes(self._data[self._offset - size : self._offset], "big")


def _read_properties(file: BinaryIO, meta: Box, scan: ImageScan) -> None:
    """Read the largest size (of the image, not its tiles), and the colours of the primary item."""
    properties = find_box(file, meta, b"iprp", b"ipco")
    primary = _list_primary_properties(file, meta)
    boxes = iterate_boxes(file, properties.start, properties.end) if properties else ()
    for number, box in enumerate(boxes, start=1):
        if box.type == b"ispe":
            width, height = unpack_fields(file, box, ">II", 4)
            if width * height > scan.width_px * scan.height_px:
                scan.width_px, scan.height_px = width, height
        elif box.type == b"colr" and number in primary:
            _read_colors(file, box, scan)


def _list_primary_properties(file: BinaryIO, meta: Box) -> set[int]:
    """Return the numbers of the properties of the primary item, from 1; a gain map has colours of its own."""
    item, associations = find_box(file, meta, b"pitm"), find_box(file, meta, b"iprp", b"ipma")
    if item is None or associations is None:
        return set()
    primary = unpack_fields(file, item, ">H" if unpack_fields(file, item, ">B")[0] == 0 else ">I", _FULL_BOX)[0]
    reader = FieldReader(read_bytes(file, associations.start, associations.end - associations.start))
    version, flags = reader.read(1), reader.read(3)
    for _ in range(min(reader.read(4), _MAX_ITEMS)):
        number = reader.read(4 if version else 2)
        found = {reader.read(2) & 0x7FFF if flags & 1 else reader.read(1) & 0x7F for _ in range(reader.read(1))}
        if number == primary:
            return found
    return set()


def _read_colors(file: BinaryIO, box: Box, scan: ImageScan) -> None:
    if scan.cicp is None and read_bytes(file, box.start, 4) == b"nclx":
        primaries, transfer = unpack_fields(file, box, ">HH", 4)
        scan.cicp = primaries, transfer


def _patch_metadata_items(file: BinaryIO, meta: Box) -> list[tuple[int, bytes]]:
    """Return replacements of the item types of EXIF and XMP: unreadable ones would fail the decoder."""
    patches: list[tuple[int, bytes]] = []
    info = find_box(file, meta, b"iinf")
    if info is None:
        return patches
    start = info.start + _FULL_BOX + (2 if unpack_fields(file, info, ">B")[0] == 0 else 4)
    for entry in iterate_boxes(file, start, info.end):
        version = unpack_fields(file, entry, ">B")[0]
        offset = entry.start + _FULL_BOX + (6 if version == 3 else 4)
        if version >= 2 and read_bytes(file, offset, 4) in _METADATA_ITEMS:
            patches.append((offset, b"skip"))
    return patches


def _build_pieces(end: int, patches: list[tuple[int, bytes]]) -> list[Piece]:
    pieces: list[Piece] = []
    start = 0
    for offset, data in sorted(patches):
        pieces += [(start, offset), data]
        start = offset + len(data)
    return [*pieces, (start, end)]


def _scan_track(file: BinaryIO, moov: Box, size: int, scan: ImageScan) -> None:
    for track in (box for box in iterate_boxes(file, moov.start, moov.end) if box.type == b"trak"):
        iso_samples.check_samples(file, track, size)
        handler = find_box(file, track, b"mdia", b"hdlr")
        if handler is None or read_bytes(file, handler.start + 8, 4) != b"pict":
            continue
        scan.frames = max(scan.frames, iso_samples.count_samples(file, track))
        width, height = iso_samples.read_track_size(file, track)
        if (width or 0) * (height or 0) > scan.width_px * scan.height_px:
            scan.width_px, scan.height_px = width or 0, height or 0
        scan.cicp = scan.cicp or iso_samples.read_colors(file, track)
