"""
Removal of metadata from videos: boxes and elements with metadata are overwritten in place.

Every part keeps its length, so that no index changes: an MP4 box becomes `free`, a WebM element `Void`, filled with
zeros. Parts that are not known to be needed are overwritten. Tracks other than video and audio are refused: cameras
record the location in them. The content of the streams is not examined.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from media import iso_bmff, webm
from media.containers import ContainerError
from media.iso_bmff import Box
from media.webm import Element
from moorage.errors import InvalidMedia

_ZEROS: Final = bytes(1 << 16)
# Boxes that remain, by parent. Those with the location (udta, meta, uuid, loci) are not listed.
_KEPT: Final[dict[bytes, frozenset[bytes]]] = {
    b"": frozenset({b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"prft", b"pdin"}),
    b"moov": frozenset({b"mvhd", b"trak", b"mvex", b"iods", b"pssh"}),
    b"trak": frozenset({b"tkhd", b"mdia", b"edts", b"tref", b"load", b"matt", b"clip"}),
    b"mdia": frozenset({b"mdhd", b"hdlr", b"minf", b"elng"}),
    b"minf": frozenset({b"vmhd", b"smhd", b"hmhd", b"nmhd", b"gmhd", b"hdlr", b"dinf", b"stbl"}),
    b"moof": frozenset({b"mfhd", b"traf", b"pssh"}),
    b"traf": frozenset({b"tfhd", b"tfdt", b"trun", b"saiz", b"saio", b"sbgp", b"sgpd", b"subs", b"senc", b"sdtp"}),
}  # fmt: skip
_TRACKS: Final = frozenset({b"vide", b"soun", b"tmcd", b"hint"})

_SEGMENT, _INFO, _TRACK_LIST, _TRACK, _TRACK_TYPE = 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0x83
_EBML, _SEEK_HEAD, _CLUSTER, _CUES, _VOID = 0x1A45DFA3, 0x114D9B74, 0x1F43B675, 0x1C53BB6B, 0xEC
_IN_SEGMENT: Final = frozenset({_SEEK_HEAD, _INFO, _TRACK_LIST, _CLUSTER, _CUES})
_SCALE, _DURATION, _MUXER, _WRITER = 0x2AD7B1, 0x4489, 0x4D80, 0x5741
_IN_INFO: Final = frozenset({_SCALE, _DURATION, _MUXER, _WRITER})
_IN_CLUSTER: Final = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF})  # of unknown size
_VIDEO_AND_AUDIO: Final = frozenset({1, 2})


def strip_mp4(file: BinaryIO, size: int) -> None:
    """Overwrite the metadata; raises InvalidMedia for a track that may contain the location, or malformed boxes."""
    try:
        end = iso_bmff.list_top_boxes(file, size)[0][-1].end
        file.truncate(end)  # what follows the last box may be anything
        _strip_boxes(file, b"", 0, end)
    except iso_bmff.BoxError as error:
        raise InvalidMedia(f"the mp4 is malformed: {error}") from error


def _strip_boxes(file: BinaryIO, parent: bytes, start: int, end: int) -> None:
    offset = start
    for box in list(iso_bmff.iterate_boxes(file, start, end)):
        if box.type == b"mdia":
            _check_mp4_track(file, box)
        if box.type not in _KEPT[parent]:
            _overwrite(file, offset + 4, b"free")
            _write_zeros(file, box.start, box.end)
        elif box.type in _KEPT:
            _strip_boxes(file, box.type, box.start, box.end)
        offset = box.end


def _check_mp4_track(file: BinaryIO, media: Box) -> None:
    handler = iso_bmff.find_box(file, media, b"hdlr")
    kind = iso_bmff.read_bytes(file, handler.start + 8, 4) if handler else b""
    if kind not in _TRACKS:
        name = kind.decode("latin-1") if kind.isalnum() else "unknown"
        raise InvalidMedia(f"the mp4 has a track ({name}) that is neither video nor audio: remove it")


def strip_webm(file: BinaryIO, size: int) -> None:
    """Overwrite tags, attachments, chapters, title and date; raises InvalidMedia as `strip_mp4`."""
    try:
        size = webm.walk_file(file, size, webm.SegmentScan())
        file.truncate(size)  # what follows may be anything
        for offset, element in _list_elements(file, 0, size):
            if element.id == _SEGMENT:
                _strip_segment(file, element.start, size if element.end is None else element.end)
                if element.end is None:
                    break  # it extends to the end of the file
            elif element.id != _EBML and element.end is not None:
                _replace_by_void(file, offset, element.end)
    except ContainerError as error:
        raise InvalidMedia(f"the webm is malformed: {error}") from error


def _strip_segment(file: BinaryIO, start: int, end: int) -> None:
    for offset, element in _list_elements(file, start, end):
        if element.end is None or element.id in _IN_CLUSTER:
            continue
        if element.id not in _IN_SEGMENT:
            _replace_by_void(file, offset, element.end)
        elif element.id == _INFO:
            _strip_info(file, element.start, element.end)
        elif element.id == _TRACK_LIST:
            _check_webm_tracks(file, element.start, element.end)


def _strip_info(file: BinaryIO, start: int, end: int) -> None:
    for offset, element in _list_elements(file, start, end):
        if element.id not in _IN_INFO and element.end is not None:
            _replace_by_void(file, offset, element.end)


def _check_webm_tracks(file: BinaryIO, start: int, end: int) -> None:
    tracks = [track for _, track in _list_elements(file, start, end) if track.id == _TRACK]
    fields = (field for track in tracks for _, field in _list_elements(file, track.start, track.end or track.start))
    for field in fields:
        if field.id == _TRACK_TYPE and field.end is not None:
            kind = int.from_bytes(iso_bmff.read_bytes(file, field.start, min(8, field.end - field.start)), "big")
            if kind not in _VIDEO_AND_AUDIO:
                raise InvalidMedia(f"the webm has a track (type {kind}) that is neither video nor audio: remove it")


def _list_elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, Element]]:
    """Return elements with the offsets of their headers; all are read before one is changed."""
    offset, elements = start, []
    for element in webm.iterate_elements(file, start, end):
        elements.append((offset, element))
        offset = element.start if element.end is None else element.end
    return iter(elements)


def _replace_by_void(file: BinaryIO, offset: int, end: int) -> None:
    """Replace an element including its header by a Void element of the same length."""
    length = end - offset
    width = 8 if length >= 9 else 1
    rest = length - 1 - width
    _overwrite(file, offset, bytes([_VOID]) + (rest | 1 << 7 * width).to_bytes(width, "big"))
    _write_zeros(file, offset + 1 + width, end)


def _overwrite(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


def _write_zeros(file: BinaryIO, start: int, end: int) -> None:
    file.seek(start)
    for offset in range(start, end, len(_ZEROS)):
        file.write(_ZEROS[: end - offset])


STRIP_BY_FORMAT: Final[dict[str, Callable[[BinaryIO, int], None]]] = {
    "mp4": strip_mp4,
    "mov": strip_mp4,
    "webm": strip_webm,
    "mkv": strip_webm,
}
