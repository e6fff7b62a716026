"""
Whether a picture file reaches the end that its format states.

Decoders stop when they have all pixels, so a JPEG without its end marker, a GIF cut between two frames, or a PNG
without its last checksum decodes.
"""

import mmap
import re
from typing import BinaryIO, Final

from media import iso_bmff
from media.sniff import FileFormat

# In a JPEG scan a marker is FF and anything but 00 (a stuffed FF), a restart or another FF (a filler).
JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B


def is_truncated(file: BinaryIO, kind: FileFormat) -> bool:
    """Tell whether a picture ends before its end. The file is not empty."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if kind.name == "png":
            return not _png_ends(data)
        if kind.name == "jpeg":
            return not _jpeg_ends(data)
        if kind.name == "gif":
            return not _gif_ends(data)
        if kind.name == "webp":
            return 8 + int.from_bytes(data[4:8], "little") > len(data)
        return kind.name == "avif" and iso_bmff.find_box_error(file, len(data)) is not None


def _png_ends(data: mmap.mmap) -> bool:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IEND":
            return end <= len(data)
        at = end
    return False


def _jpeg_ends(data: mmap.mmap) -> bool:
    at = 2
    while found := JPEG_MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9:
            return True
        if marker == 0x01:  # stands alone, has no length
            continue
        if at + 2 > len(data):
            return False
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return False


def _gif_ends(data: mmap.mmap) -> bool:
    at = 13 + gif_color_table_bytes(data[10])
    while at < len(data):
        block = data[at]
        if block == _GIF_TRAILER:
            return True
        if block == _GIF_IMAGE and at + 9 < len(data):
            at = skip_gif_sub_blocks(data, at + 11 + gif_color_table_bytes(data[at + 9]))
        elif block == _GIF_EXTENSION:
            at = skip_gif_sub_blocks(data, at + 2)
        else:
            return False
    return False


def gif_color_table_bytes(flags: int) -> int:
    """Return how many bytes the table of colours takes that flags tell of."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def skip_gif_sub_blocks(data: bytes | mmap.mmap, offset: int) -> int:
    """Return where the sub-blocks that start here end, or the end of the file when they do not."""
    while offset < len(data):
        size = data[offset]
        offset += 1 + size
        if not size:
            return offset
    return len(data)
