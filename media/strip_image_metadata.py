"""
Pictures without what they say of their making: containers walked part by part, and only parts that show are passed on.

Nothing is decoded, so no pixel changes. What is not known to be needed is left out, also what nobody has heard of yet;
colour profiles, gamma and animation stay. Files were decoded to their end before; what does not fit all the same is
refused.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import Final

from media.truncation import JPEG_MARKER, gif_color_table_bytes, skip_gif_sub_blocks
from moorage.errors import InvalidMedia

Data = bytes | mmap.mmap

_PNG_KEPT: Final = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"cLLI",
     b"sBIT", b"bKGD", b"pHYs", b"acTL", b"fcTL", b"fdAT"}
)  # fmt: skip
_WEBP_KEPT: Final = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})
_WEBP_FRAME_KEPT: Final = frozenset({b"VP8 ", b"VP8L", b"ALPH"})
_WEBP_EXIF_XMP: Final = 0x0C  # flags in VP8X that tell of metadata
_GIF_LOOPS: Final = (b"\x0bNETSCAPE2.0", b"\x0bANIMEXTS1.0")
_GIF_CONTROL: Final = 0xF9  # how long the next picture stands, and which colour is clear


def strip_jpeg(data: Data) -> Iterator[bytes]:
    """Pass on tables, frames and scans, the JFIF header without its preview, the colour profile and Adobe's flag."""
    yield b"\xff\xd8"
    at, in_scan = 2, False
    while found := JPEG_MARKER.search(data, at):
        marker, start = data[found.start() + 1], found.end()
        if in_scan:
            yield data[at : found.start()]
        at, in_scan = start, in_scan and marker == 0x01
        if marker == 0xD9:
            yield b"\xff\xd9"
            return
        if marker == 0x01:
            continue
        length = int.from_bytes(data[start : start + 2], "big")
        if length < 2 or marker == 0xD8:
            raise InvalidMedia("the jpeg has a part without a length")
        at, in_scan = start + length, marker == 0xDA
        if (kept := _jpeg_part(marker, data[start + 2 : at])) is not None:
            yield b"\xff" + bytes([marker]) + (len(kept) + 2).to_bytes(2, "big") + kept
    raise InvalidMedia("the jpeg has no end")


def _jpeg_part(marker: int, content: bytes) -> bytes | None:
    if marker == 0xE0 and content.startswith(b"JFIF\x00") and len(content) >= 14:
        return content[:12] + b"\x00\x00"  # version and density; behind them a preview of another picture may stand
    if marker == 0xE2:
        return content if content.startswith(b"ICC_PROFILE\x00") else None
    if marker == 0xEE:
        return content[:12] if content.startswith(b"Adobe") and len(content) >= 12 else None
    return content if 0xC0 <= marker <= 0xCF or 0xDA <= marker <= 0xDF else None


def strip_png(data: Data) -> Iterator[bytes]:
    """Pass on pixels, palette, colour, density and frames, up to the end chunk."""
    yield data[:8]
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind in _PNG_KEPT:
            yield data[at:end]
        if kind == b"IEND":
            return
        at = end
    raise InvalidMedia("the png has no end")


def strip_gif(data: Data) -> Iterator[bytes]:
    """Pass on pictures, their timing, and how often they repeat; comments and programs' own blocks stay behind."""
    at = 13 + gif_color_table_bytes(data[10])
    yield data[:at]
    while at < len(data):
        block, start = data[at], at
        if block == 0x3B:
            yield b"\x3b"
            return
        is_picture = block == 0x2C
        if block not in (0x2C, 0x21) or (is_picture and at + 9 >= len(data)):
            break
        at = skip_gif_sub_blocks(data, at + 11 + gif_color_table_bytes(data[at + 9]) if is_picture else at + 2)
        if is_picture or data[start + 1] == _GIF_CONTROL or data[start + 2 : start + 14] in _GIF_LOOPS:
            yield data[start:at]
    raise InvalidMedia("the gif has no end")


def strip_webp(data: Data) -> Iterator[bytes]:
    """Pass on picture data, transparency, animation and colour profile."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    parts = [part for part in (_webp_part(kind, content) for kind, content in _chunks(data, 12, end)) if part]
    yield b"RIFF" + (4 + sum(map(len, parts))).to_bytes(4, "little") + b"WEBP"
    yield from parts


def _webp_part(kind: bytes, content: bytes) -> bytes | None:
    if kind not in _WEBP_KEPT:
        return None
    if kind == b"VP8X":
        content = bytes([content[0] & ~_WEBP_EXIF_XMP]) + content[1:]
    if kind == b"ANMF":
        inside = [_chunk(k, c) for k, c in _chunks(content, 16, len(content)) if k in _WEBP_FRAME_KEPT]
        content = content[:16] + b"".join(inside)
    return _chunk(kind, content)


def _chunks(data: Data, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > end:
            raise InvalidMedia("the webp has a part that is longer than the file")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4, "little") + content + b"\x00" * (len(content) % 2)


STRIP_BY_FORMAT: Final[dict[str, Callable[[Data], Iterator[bytes]]]] = {
    "jpeg": strip_jpeg,
    "png": strip_png,
    "gif": strip_gif,
    "webp": strip_webp,
}
