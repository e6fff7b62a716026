"""Ogg without a decoder: its pages, to the end."""

import zlib
from dataclasses import dataclass
from typing import Final

from media.containers import ContainerError, Data, FileFacts

_CHECKED_PAGES: Final = 3  # at the start, whose checksums are compared, and the last one
_VIDEO: Final = (b"\x80theora", b"BBCD\0", b"OVP80")
_OPUS_HERTZ: Final = 48_000
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(slots=True)
class StreamState:
    """One logical stream: its samples a second (0: not known), samples to skip, and its last position."""

    hertz: int
    skipped: int
    is_video: bool
    position: int = 0
    is_ended: bool = False


def parse_ogg(data: Data) -> FileFacts:
    """Walk an Ogg file to its end; raises ContainerError if a page is incomplete or damaged."""
    size, offset, number, last = len(data), 0, 0, 0
    streams: dict[bytes, StreamState] = {}
    while offset < size:
        last, header = offset, data[offset : offset + 27]
        if not header.startswith(b"OggS"[: len(header)]) or header[4:5] not in (b"", b"\0"):
            raise ContainerError(f"damaged: no page at byte {offset}")
        start = offset + 27 + (header[26] if len(header) == 27 else 0)
        offset = start + sum(data[offset + 27 : start])
        if len(header) < 27 or start > size or offset > size:
            raise ContainerError("truncated: its last page is incomplete")
        if number < _CHECKED_PAGES:
            _check_page(data, last, offset)
        _add_page(streams, header, data[start : min(offset, start + 64)])
        number += 1
    _check_page(data, last, size)
    seconds = max((max(0, s.position - s.skipped) / s.hertz for s in streams.values() if s.hertz), default=0.0)
    note = None if all(s.is_ended for s in streams.values()) else "it has no end mark"
    return FileFacts(seconds or None, note, "video/ogg" if any(s.is_video for s in streams.values()) else None)


def _add_page(streams: dict[bytes, StreamState], header: bytes, content: bytes) -> None:
    serial, flags = header[14:18], header[5]
    if flags & 2:  # the first page of a stream
        streams[serial] = _parse_stream(content)
    state = streams.get(serial)
    if state is None:
        raise ContainerError("damaged: a page belongs to no stream")
    position = int.from_bytes(header[6:14], "little", signed=True)
    if position > 0:
        state.position = position
    state.is_ended = bool(flags & 4)


def _parse_stream(content: bytes) -> StreamState:
    if content.startswith(b"OpusHead"):
        return StreamState(_OPUS_HERTZ, int.from_bytes(content[10:12], "little"), False)
    if content.startswith(b"\x01vorbis"):
        return StreamState(int.from_bytes(content[12:16], "little"), 0, False)
    if content.startswith(b"\x7fFLAC"):
        return StreamState(int.from_bytes(content[27:30], "big") >> 4, 0, False)
    if content.startswith(b"Speex   "):
        return StreamState(int.from_bytes(content[36:40], "little"), 0, False)
    return StreamState(0, 0, content.startswith(_VIDEO))


def _check_page(data: Data, start: int, end: int) -> None:
    """Compare the checksum: that of zlib with the bits of input and result reversed, and inverted."""
    page = data[start : start + 22] + bytes(4) + data[start + 26 : end]
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    if crc.to_bytes(4, "big").translate(_REVERSED) != data[start + 22 : start + 26]:
        raise ContainerError(f"damaged: the page at byte {start} has another checksum")
