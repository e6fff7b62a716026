"""
Removal of metadata from videos: boxes and elements with metadata are overwritten in place.

Every part keeps its length, so that no index changes: an MP4 box becomes `free`, a WebM element `Void`, filled with
zeros. Parts that are not known to be needed are overwritten. Tracks other than video and audio are refused: cameras
record the location in them. The content of the streams is not examined.
"""

from collections.abc import Callable
from mmap import mmap
from typing import Final

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

_IN_SEGMENT: Final = webm.IN_CLUSTER | {webm.SEEK_HEAD, webm.INFO, webm.TRACKS, webm.CLUSTER, webm.CUES}
_MUXER, _WRITER = 0x4D80, 0x5741
_IN_INFO: Final = frozenset({webm.TIMESTAMP_SCALE, webm.DURATION, _MUXER, _WRITER})


def strip_mp4(data: mmap) -> int:
    """
    Overwrite the metadata; returns where the last box ends: what follows may be anything.

    Raises InvalidMedia for a track that may contain the location, or malformed boxes.
    """
    try:
        end = iso_bmff.list_top_boxes(data)[0][-1].end
        _strip_boxes(data, Box(data, b"", 0, 0, end))
    except iso_bmff.BoxError as error:
        raise InvalidMedia(f"the mp4 is malformed: {error}") from error
    return end


def _strip_boxes(data: mmap, parent: Box) -> None:
    for box in list(parent.iterate()):
        if box.type == b"mdia":
            _check_mp4_track(box)
        if box.type not in _KEPT[parent.type]:
            data[box.offset + 4 : box.offset + 8] = b"free"
            _write_zeros(data, box.start, box.end)
        elif box.type in _KEPT:
            _strip_boxes(data, box)


def _check_mp4_track(media: Box) -> None:
    handler = media.find(b"hdlr")
    kind = handler.read(8, 4) if handler else b""
    if kind not in _TRACKS:
        name = kind.decode("latin-1") if kind.isalnum() else "unknown"
        raise InvalidMedia(f"the mp4 has a track ({name}) that is neither video nor audio: remove it")


def strip_webm(data: mmap) -> int:
    """Overwrite tags, attachments, chapters, title and date; returns and raises as `strip_mp4`."""
    try:
        end = webm.scan_segment(data)[1]
        for element in webm.list_elements(data, 0, end):
            if element.id == webm.SEGMENT:
                _strip_segment(data, element.start, element.end or end)
                if element.end is None:
                    break  # it extends to the end of the file
            elif element.id != webm.EBML:
                _replace_by_void(data, element)
    except ContainerError as error:
        raise InvalidMedia(f"the webm is malformed: {error}") from error
    return end


def _strip_segment(data: mmap, start: int, end: int) -> None:
    for element in webm.list_elements(data, start, end):
        if element.id not in _IN_SEGMENT:
            _replace_by_void(data, element)
        elif element.id == webm.INFO:
            for field in element.list_children():
                if field.id not in _IN_INFO:
                    _replace_by_void(data, field)
        elif element.id == webm.TRACKS:
            for track in element.list_children():
                _check_webm_track(track)


def _check_webm_track(track: Element) -> None:
    for field in track.list_children() if track.id == webm.TRACK else ():
        kind = webm.read_unsigned(field)
        if field.id == webm.TRACK_TYPE and kind not in (webm.VIDEO_TYPE, webm.AUDIO_TYPE):
            raise InvalidMedia(f"the webm has a track (type {kind}) that is neither video nor audio: remove it")


def _replace_by_void(data: mmap, element: Element) -> None:
    """Replace an element including its header by a Void element of the same length, unless it has no size."""
    if element.end is None:
        return
    length = element.end - element.offset
    width = 8 if length >= 9 else 1
    rest = length - 1 - width
    start = element.offset + 1 + width
    data[element.offset : start] = bytes([webm.VOID]) + (rest | 1 << 7 * width).to_bytes(width, "big")
    _write_zeros(data, start, element.end)


def _write_zeros(data: mmap, start: int, end: int) -> None:
    for offset in range(start, end, len(_ZEROS)):
        size = min(len(_ZEROS), end - offset)
        data[offset : offset + size] = _ZEROS[:size]


STRIP_BY_FORMAT: Final[dict[str, Callable[[mmap], int]]] = {
    "mp4": strip_mp4, "mov": strip_mp4, "webm": strip_webm, "mkv": strip_webm,
}  # fmt: skip
