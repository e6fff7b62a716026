"""MP4 without a decoder: checks that the file is complete, and reads size and duration."""

from typing import BinaryIO

from media import iso_samples
from media.containers import ContainerError, VideoFacts
from media.iso_bmff import Box, BoxError, find_box, iterate_boxes, list_top_boxes, read_bytes, unpack_fields


def parse_mp4(file: BinaryIO, size: int) -> VideoFacts:
    """Return size and duration of an MP4 of `size` bytes; raises ContainerError if it is not complete."""
    try:
        return _parse(file, size)
    except BoxError as error:
        raise ContainerError(str(error)) from error


def _parse(file: BinaryIO, size: int) -> VideoFacts:
    top, note = list_top_boxes(file, size)
    moov = next((box for box in top if box.type == b"moov"), None)
    if moov is None:
        raise ContainerError("no index (moov): truncated or never finished")
    if not any(box.type == b"mdat" for box in top):
        raise ContainerError("no data (mdat)")
    tracks = [box for box in iterate_boxes(file, moov.start, moov.end) if box.type == b"trak"]
    handlers = [_read_handler(file, track) for track in tracks]
    video_tracks = [track for track, handler in zip(tracks, handlers, strict=True) if handler == b"vide"]
    is_audio = not video_tracks and b"soun" in handlers
    if not video_tracks and not is_audio:
        raise ContainerError("no video track")
    for track in tracks:
        iso_samples.check_samples(file, track, size)
    fragments_seconds = iso_samples.scan_fragments(file, top, moov, size)
    width, height = iso_samples.read_track_size(file, video_tracks[0]) if video_tracks else (None, None)
    duration_s = max(
        _read_duration(file, moov) or 0.0, fragments_seconds or 0.0
    )  # moov may state the first fragment only
    return VideoFacts(width, height, duration_s or None, note, is_audio)


def _read_handler(file: BinaryIO, track: Box) -> bytes:
    hdlr = find_box(file, track, b"mdia", b"hdlr")
    return read_bytes(file, hdlr.start + 8, 4) if hdlr else b""


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
