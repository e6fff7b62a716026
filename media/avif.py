"""AVIF without a decoder: are all extents of its items, or all samples of its track, in the file?"""

from collections.abc import Iterator
from typing import Final

from media import mp4
from media.containers import ContainerError, Data, ImageScan
from media.iso_bmff import Box, BoxError, list_top_boxes

_METADATA_ITEMS: Final = frozenset({b"Exif", b"mime"})
_FULL_BOX: Final = 4  # version and flags
_MAX_ITEMS: Final = 65_536


def scan_avif(data: Data) -> ImageScan:
    """Walk an AVIF; raises ContainerError if data of an item or sample is not in the file."""
    try:
        return _scan(data)
    except BoxError as error:
        raise ContainerError(f"truncated or damaged: {error}") from error


def _scan(data: Data) -> ImageScan:
    top, note = list_top_boxes(data)
    boxes = {box.type: box for box in reversed(top)}
    meta, moov = boxes.get(b"meta"), boxes.get(b"moov")
    if meta is None and moov is None:
        raise ContainerError("damaged: it has no index (meta)")
    scan = ImageScan(0, 0, 1, [], [note] if note else [])
    patches: list[int] = []
    if meta is not None:
        content = Box(data, b"meta", meta.offset, meta.start + _FULL_BOX, meta.end)
        _check_extents(content)
        _read_properties(content, scan)
        patches = _find_metadata_items(content)
    if moov is not None:
        _scan_tracks(moov, scan)
    start = 0
    for offset in sorted(patches):
        scan.pieces += [(start, offset), b"skip"]
        start = offset + 4
    scan.pieces.append((start, top[-1].end))
    return scan


def _check_extents(meta: Box) -> None:
    location = meta.find(b"iloc")
    if location is None:
        return
    idat = meta.find(b"idat")
    for method, offset, length in _iterate_extents(location):
        limit = len(meta.data) if method == 0 else (idat.end - idat.start if idat else 0)
        if method in (0, 1) and offset + length > limit:
            raise ContainerError(f"truncated: an image ends at byte {offset + length} of {limit}")


def _iterate_extents(location: Box) -> Iterator[tuple[int, int, int]]:
    """Yield construction method, offset and length of each extent of an `iloc` box (ISO/IEC 14496-12, 8.11.3)."""
    reader = FieldReader(location)
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
    """Big-endian numbers in the content of a box, in sequence; raises BoxError at its end."""

    def __init__(self, box: Box) -> None:
        self._data, self._offset = box.read(0, box.end - box.start), 0

    def read(self, size: int) -> int:
        self._offset += size
        if self._offset > len(self._data):
            raise BoxError("a table ends early")
        return int.from_bytes(self._data[self._offset - size : self._offset], "big")


def _read_properties(meta: Box, scan: ImageScan) -> None:
    """Read the largest size (of the image, not its tiles), and the colours of the primary item."""
    properties = meta.find(b"iprp", b"ipco")
    primary = _list_primary_properties(meta)
    for number, box in enumerate(properties.iterate() if properties else (), start=1):
        if box.type == b"ispe":
            _enlarge(scan, *box.unpack(">II", 4))
        elif box.type == b"colr" and number in primary:
            scan.cicp = scan.cicp or mp4.read_nclx(box)


def _enlarge(scan: ImageScan, width: int, height: int) -> None:
    if width * height > scan.width_px * scan.height_px:
        scan.width_px, scan.height_px = width, height


def _list_primary_properties(meta: Box) -> set[int]:
    """Return the numbers of the properties of the primary item, from 1; a gain map has colours of its own."""
    item, associations = meta.find(b"pitm"), meta.find(b"iprp", b"ipma")
    if item is None or associations is None:
        return set()
    primary = item.unpack(">H" if item.unpack(">B")[0] == 0 else ">I", _FULL_BOX)[0]
    reader = FieldReader(associations)
    version, flags = reader.read(1), reader.read(3)
    for _ in range(min(reader.read(4), _MAX_ITEMS)):
        number = reader.read(4 if version else 2)
        found = {reader.read(2) & 0x7FFF if flags & 1 else reader.read(1) & 0x7F for _ in range(reader.read(1))}
        if number == primary:
            return found
    return set()


def _find_metadata_items(meta: Box) -> list[int]:
    """Return where the item types of EXIF and XMP are: unreadable ones would fail the decoder."""
    info = meta.find(b"iinf")
    if info is None:
        return []
    offsets = []
    for entry in info.iterate(_FULL_BOX + (2 if info.unpack(">B")[0] == 0 else 4)):
        version = entry.unpack(">B")[0]
        offset = _FULL_BOX + (6 if version == 3 else 4)
        if version >= 2 and entry.read(offset, 4) in _METADATA_ITEMS:
            offsets.append(entry.start + offset)
    return offsets


def _scan_tracks(moov: Box, scan: ImageScan) -> None:
    for track in moov.list_children(b"trak"):
        mp4.check_samples(track)
        if mp4.read_handler(track) == b"pict":
            scan.frames = max(scan.frames, mp4.count_samples(track))
            width, height = mp4.read_track_size(track)
            _enlarge(scan, width or 0, height or 0)
            scan.cicp = scan.cicp or mp4.read_colors(track)
