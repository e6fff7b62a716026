"""WebP without a decoder: size, frames, and whether the file reaches the end that its header states."""

from collections.abc import Iterator
from typing import Final

from media.containers import ContainerError, Data, ImageScan

_BITS_14: Final = 0x3FFF


def scan_webp(data: Data) -> ImageScan:
    """Walk a WebP; raises ContainerError if it is incomplete. What follows the RIFF container is not decoded."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise ContainerError("truncated: its end is missing")
    size, frames = None, 0
    for kind, start, _ in iterate_riff_chunks(data, 12, end):
        size = size or _parse_size(kind, data[start : start + 10])
        frames += kind == b"ANMF"
    if size is None:
        raise ContainerError("damaged: it has no image")
    return ImageScan(*size, max(1, frames), [(0, end)])


def iterate_riff_chunks(data: Data, offset: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the content of each chunk, up to one that does not fit."""
    while offset + 8 <= end:
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if offset + 8 + size > end:
            return
        yield data[offset : offset + 4], offset + 8, offset + 8 + size
        offset += 8 + size + size % 2


def _parse_size(kind: bytes, content: bytes) -> tuple[int, int] | None:
    if kind == b"VP8X" and len(content) == 10:
        return 1 + int.from_bytes(content[4:7], "little"), 1 + int.from_bytes(content[7:10], "little")
    if kind == b"VP8 " and content[3:6] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(content[6:8], "little"), int.from_bytes(content[8:10], "little")
        return width & _BITS_14, height & _BITS_14
    if kind == b"VP8L" and content[:1] == b"\x2f":
        bits = int.from_bytes(content[1:5], "little")
        return 1 + (bits & _BITS_14), 1 + (bits >> 14 & _BITS_14)
    return None
