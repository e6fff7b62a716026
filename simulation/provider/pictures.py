"""
Files for outputs: pictures made from a seed, or taken from a folder, and the broken ones.

A picture's pixels are drawn four times per kind and cached; what makes each seed's bytes unique is a mark written into
the container where decoders skip it. So sixty outputs cost a copy each, not an encoding each.
"""

import functools
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

KINDS: Final = ("png", "jpeg", "jpeg_rotated", "webp", "avif", "gif")
VIDEOS: Final = ("mp4",)
CONTENT_TYPES: Final = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
}
_VIDEO: Final = Path(__file__).with_name("harbour.mp4")  # 3 s of H.264, drawn for the stand-in
_SIZES: Final = ((512, 512), (768, 512), (640, 896), (1024, 768))
_ORIENTATION: Final = 0x0112  # Exif tag; 6: to be turned a quarter clockwise
_BOMB_PX: Final = (20_000, 15_000)


@dataclass(frozen=True, slots=True)
class File:
    """Bytes with the type they are served under."""

    data: bytes
    content_type: str


def made(kind: str, seed: int, size: tuple[int, int] | None = None) -> File:
    """
    Return one of KINDS or VIDEOS for a seed: the same seed gives the same bytes, another one other bytes.

    Args:
        size: width and height of a picture; else one of four, by the seed. A video's is its own.
    """
    mark = _MARKS[ending(kind)]
    whole = _VIDEO.read_bytes() if kind in VIDEOS else _drawn(kind, seed % len(_SIZES), size)
    return File(mark(whole, f"seed {seed}".encode()), content_type(kind))


def bomb() -> File:
    """Return a valid PNG of 300 megapixels in some 40 kB."""
    return File(_bomb(), CONTENT_TYPES["png"])


def names(folder: Path) -> tuple[str, ...]:
    """Return the names of the pictures and videos in a folder, sorted."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix[1:].lower() in CONTENT_TYPES))


def read(path: Path) -> File:
    """Return a file of the folder."""
    return File(path.read_bytes(), content_type(path.name))


def ending(kind: str) -> str:
    """Return the file ending of one of KINDS, or of a file of the folder by its name: png, jpeg, mp4."""
    return kind.rpartition(".")[2].lower().removesuffix("_rotated")


def is_video(kind: str) -> bool:
    """Return whether one of KINDS or VIDEOS, or a file of the folder, is a video."""
    return content_type(kind).startswith("video/")


def content_type(kind: str) -> str:
    """Return the Content-Type of one of KINDS, or of a file of the folder by its name."""
    return CONTENT_TYPES[ending(kind)]


def noise(length: int, seed: int) -> bytes:
    """Return bytes that look random and are the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(16, "big")).digest(length)


@functools.lru_cache(maxsize=64)
def _drawn(kind: str, variant: int, size: tuple[int, int] | None) -> bytes:
    image = _scene(size or _SIZES[variant], variant + 10 * KINDS.index(kind))
    target = io.BytesIO()
    match kind:
        case "jpeg":
            image.save(target, "JPEG", quality=85)
        case "jpeg_rotated":
            exif = Image.Exif()
            exif[_ORIENTATION] = 6
            image.save(target, "JPEG", quality=85, exif=exif)
        case "webp":
            image.save(target, "WEBP", quality=80, method=2)
        case "avif":
            image.save(target, "AVIF", quality=60, speed=10)
        case "gif":
            frames = [image.rotate(turn).quantize(64, Image.Quantize.FASTOCTREE) for turn in (0, 90, 180)]
            frames[0].save(target, "GIF", save_all=True, append_images=frames[1:], duration=200)
        case _:
            image.save(target, "PNG", compress_level=4)
    return target.getvalue()


def _scene(size: tuple[int, int], seed: int) -> Image.Image:
    chance = noise(256, seed)
    slope = Image.linear_gradient("L")
    bands = [slope.rotate(90 * (turn % 4)).resize(size) for turn in chance[:3]]
    image = Image.merge("RGB", bands)
    draw = ImageDraw.Draw(image)
    for at in range(3, 3 + 16 * 6, 6):
        x, y = size[0] * chance[at] // 256, size[1] * chance[at + 1] // 256
        radius = 10 + chance[at + 2] // 2
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(chance[at + 3 : at + 6]))
    return image


def _mark_png(data: bytes, text: bytes) -> bytes:
    return data[:-12] + _chunk(b"tEXt", b"Comment\0" + text) + data[-12:]  # before IEND, which is 12 bytes


def _mark_jpeg(data: bytes, text: bytes) -> bytes:
    at = 2
    while 0xE0 <= data[at + 1] <= 0xEF:  # JFIF and Exif stay first
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[at:]


def _mark_webp(data: bytes, text: bytes) -> bytes:
    text += b" " * (len(text) % 2)
    body = data[8:] + b"note" + struct.pack("<I", len(text)) + text
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _mark_avif(data: bytes, text: bytes) -> bytes:
    return data + struct.pack(">I", 8 + len(text)) + b"free" + text


def _mark_gif(data: bytes, text: bytes) -> bytes:
    return data[:-1] + b"\x21\xfe" + bytes([len(text)]) + text + b"\0" + data[-1:]  # before the trailer


_MARKS: Final = {
    "png": _mark_png,
    "jpeg": _mark_jpeg,
    "webp": _mark_webp,
    "avif": _mark_avif,
    "gif": _mark_gif,
    "mp4": _mark_avif,  # both are ISO base media files, in which a box `free` may stand at the end
}


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@functools.cache
def _bomb() -> bytes:
    width, height = _BOMB_PX
    row = bytes(1 + width // 8)  # one bit a pixel, no filter
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
