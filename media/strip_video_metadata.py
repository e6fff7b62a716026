"""
Videos without what they say of their making: parts that hold metadata are blanked where they stand.

Every part keeps its length, so that no index changes: an MP4's box becomes `free`, a WebM's element `Void`, both filled
with zeros. What is not known to be needed is blanked. Tracks that are neither picture nor sound are refused: cameras
write the place into them, sample by sample. The streams themselves are not looked into.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from media import iso_bmff, webm
from media.containers import ContainerError
from media.iso_bmff import Box
from media.webm import Element
from moorage.errors import InvalidMedia

_ZEROS: Final = bytes(1 << 16)
# Of each box that is entered, the boxes that stay. What holds location (udta, meta, uuid, loci) is in none.
_KEPT: Final[dict[bytes, frozenset[bytes]]] = {
    b"": frozenset({b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"prft", b"pdin"}),
    b"moov": frozenset({b"mvhd", b"trak", b"mvex", b"iods", b"pssh"}),
    b"trak": frozenset({b"tkhd", b"mdia", b"edts", b"tref", b"load", b"matt", b"clip"}),
    b"mdia": frozenset({b"mdhd", b"hdlr", b"minf", b"elng"}),
    b"minf": frozenset({b"vmhd", b"smhd", b"hmhd", b"nmhd", b"gmhd", b"hdlr", b"dinf", b"stbl"}),
    b"moof": frozenset({b"mfhd", b"traf", b"pssh"}),
    b"traf": frozenset(
        {b"tfhd", b"tfdt", b"trun", b"saiz", b"saio", b"sbgp", b"sgpd", b"subs", b"senc", b"sdtp"}
    ),
}  # fmt: skip
_TRACKS: Final = frozenset({b"vide", b"soun", b"tmcd", b"hint"})

_SEGMENT, _INFO, _TRACK_LIST, _TRACK, _TRACK_TYPE = 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0x83
_EBML, _SEEK_HEAD, _CLUSTER, _CUES, _VOID = 0x1A45DFA3, 0x114D9B74, 0x1F43B675, 0x1C53BB6B, 0xEC
_IN_SEGMENT: Final = frozenset({_SEEK_HEAD, _INFO, _TRACK_LIST, _CLUSTER, _CUES})
_SCALE, _DURATION, _MUXER, _WRITER = 0x2AD7B1, 0x4489, 0x4D80, 0x5741
_IN_INFO: Final = frozenset({_SCALE, _DURATION, _MUXER, _WRITER})
_IN_CLUSTER: Final = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF})  # of one whose size is unknown
_SHOWN: Final = frozenset({1, 2})  # picture, sound


def strip_mp4(file: BinaryIO, size: int) -> None:
    """
    Blank an MP4's metadata in place.

    Raises:
        Invalid: it has a track that may tell the place, or its boxes do not fit.
    """
    try:
        _mp4_inside(file, b"", 0, size)
    except iso_bmff.BoxError as error:
        raise InvalidMedia(f"the mp4 is not whole: {error}") from error


def _mp4_inside(file: BinaryIO, parent: bytes, start: int, end: int) -> None:
    at = start
    for box in list(iso_bmff.iterate_boxes(file, start, end)):
        if box.type == b"mdia":
            _check_track(file, box)
        if box.type not in _KEPT[parent]:
            _overwrite(file, at + 4, b"free")
            _blank(file, box.start, box.end)
        elif box.type in _KEPT:
            _mp4_inside(file, box.type, box.start, box.end)
        at = box.end


def _check_track(file: BinaryIO, media: Box) -> None:
    handler = iso_bmff.find_box(file, media, b"hdlr")
    kind = iso_bmff.read_bytes(file, handler.start + 8, 4) if handler else b""
    if kind not in _TRACKS:
        told = kind.decode("latin-1") if kind.isalnum() else "unknown"
        raise InvalidMedia(f"the mp4 has a track ({told}) that is neither picture nor sound: send it without")


def strip_webm(file: BinaryIO, size: int) -> None:
    """
    Blank a WebM's tags, attachments, chapters, title and date in place.

    Raises:
        Invalid: it has a track that is neither picture nor sound, or its elements do not fit.
    """
    try:
        for at, top in _elements(file, 0, size):
            if top.id == _SEGMENT:
                _segment(file, top.start, size if top.end is None else top.end)
                if top.end is None:
                    break  # it holds all that follows
            elif top.id != _EBML and top.end is not None:
                _void(file, at, top.end)
    except ContainerError as error:
        raise InvalidMedia(f"the webm is not whole: {error}") from error


def _segment(file: BinaryIO, start: int, end: int) -> None:
    for at, element in _elements(file, start, end):
        if element.end is None or element.id in _IN_CLUSTER:
            continue
        if element.id not in _IN_SEGMENT:
            _void(file, at, element.end)
        elif element.id == _INFO:
            _info(file, element.start, element.end)
        elif element.id == _TRACK_LIST:
            _check_tracks(file, element.start, element.end)


def _info(file: BinaryIO, start: int, end: int) -> None:
    for at, element in _elements(file, start, end):
        if element.id not in _IN_INFO and element.end is not None:
            _void(file, at, element.end)


def _check_tracks(file: BinaryIO, start: int, end: int) -> None:
    tracks = [track for _, track in _elements(file, start, end) if track.id == _TRACK]
    for field in (field for track in tracks for _, field in _elements(file, track.start, track.end or track.start)):
        if field.id == _TRACK_TYPE and field.end is not None:
            kind = int.from_bytes(iso_bmff.read_bytes(file, field.start, min(8, field.end - field.start)), "big")
            if kind not in _SHOWN:
                raise InvalidMedia(
                    f"the webm has a track (type {kind}) that is neither picture nor sound: send it without"
                )


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, Element]]:
    """Return elements with where their headers stand; all are found before one is changed."""
    at, found = start, []
    for element in webm.iterate_elements(file, start, end):
        found.append((at, element))
        at = element.start if element.end is None else element.end
    return iter(found)


def _void(file: BinaryIO, at: int, end: int) -> None:
    """Make an element, header and all, one of nothing with the same length."""
    whole = end - at
    width = 8 if whole >= 9 else 1
    rest = whole - 1 - width
    _overwrite(file, at, bytes([_VOID]) + (rest | 1 << 7 * width).to_bytes(width, "big"))
    _blank(file, at + 1 + width, end)


def _overwrite(file: BinaryIO, at: int, data: bytes) -> None:
    file.seek(at)
    file.write(data)


def _blank(file: BinaryIO, start: int, end: int) -> None:
    file.seek(start)
    for at in range(start, end, len(_ZEROS)):
        file.write(_ZEROS[: end - at])


STRIP_BY_FORMAT: Final[dict[str, Callable[[BinaryIO, int], None]]] = {"mp4": strip_mp4, "webm": strip_webm}
