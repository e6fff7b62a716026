"""
Detection of truncated images: does the file reach the end that its format states?

Decoders stop once they have all pixels, so a JPEG without its end marker, a GIF cut between two frames, or a PNG
without its last checksum decodes without error.
"""

import mmap
import re
from collections.abc import Iterator
from typing import BinaryIO, Final

from media import iso_bmff
from media.sniff import FileFormat

# In a JPEG scan a marker is FF followed by anything but 00 (stuffing), a restart marker or FF (a fill byte).
JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B


def is_truncated(file: BinaryIO, kind: FileFormat) -> bool:
    """Return True if a non-empty image file ends early."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if kind.name == "png":
            return not any(chunk == b"IEND" and end <= len(data) for chunk, _, end in iterate_png_chunks(data))
        if kind.name == "jpeg":
            return not _has_jpeg_end(data)
        if kind.name == "gif":
            return not _has_gif_end(data)
        if kind.name == "webp":
            return 8 + int.from_bytes(data[4:8], "little") > len(data)
        return kind.name == "avif" and not iso_bmff.has_complete_boxes(file, len(data))


def iterate_png_chunks(data: bytes | mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of each chunk; the last one may extend beyond the data."""
    offset = 8
    while offset + 12 <= len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4], "big")
        yield data[offset + 4 : offset + 8], offset, end
        offset = end


def _has_jpeg_end(data: mmap.mmap) -> bool:
    offset = 2
    while match := JPEG_MARKER.search(data, offset):
        marker, offset = data[match.start() + 1], match.end()
        if marker == 0xD9:
            return True
        if marker == 0x01:  # no length field
            continue
        if offset + 2 > len(data):
            return False
        offset += max(2, int.from_bytes(data[offset : offset + 2], "big"))
    return False


def _has_gif_end(data: mmap.mmap) -> bool:
    offset = 13 + gif_color_table_bytes(data[10])
    while offset < len(data):
        block = data[offset]
        if block == _GIF_TRAILER:
            return True
        if block == _GIF_IMAGE and offset + 9 < len(data):
            offset = skip_gif_sub_blocks(data, offset + 11 + gif_color_table_bytes(data[offset + 9]))
        elif block == _GIF_EXTENSION:
            offset = skip_gif_sub_blocks(data, offset + 2)
        else:
            return False
    return False


def gif_color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def skip_gif_sub_blocks(data: bytes | mmap.mmap, offset: int) -> int:
    """Return the offset after the sub-blocks that start here, or the end of the file."""
    while offset < len(data):
        size = data[offset]
        offset += 1 + size
        if not size:
            return offset
    return len(data)
