"""Files for outputs: pictures generated from a prompt and a seed or read from a folder, and a decompression bomb."""

import functools
import hashlib
import io
import struct
import textwrap
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageColor, ImageDraw, ImageFont

FORMATS: Final = ("png", "jpeg", "jpeg_rotated", "webp", "avif", "gif")
VIDEO_FORMATS: Final = ("mp4",)
FILE_FORMATS: Final = ("wav", "glb")
_IMAGES: Final = ("png", "jpeg", "webp", "avif", "gif")
CONTENT_TYPES: Final = {name: f"image/{name}" for name in _IMAGES} | {
    "jpg": "image/jpeg", "mp4": "video/mp4", "webm": "video/webm", "wav": "audio/wav", "glb": "model/gltf-binary",
}  # fmt: skip
_VIDEO: Final = Path(__file__).with_name("harbour.mp4")  # 3 s of H.264, created for the stand-in
_SIZES: Final = ((512, 512), (768, 512), (640, 896), (1024, 768))
_ORIENTATION: Final = 0x0112  # Exif tag; 6: rotate by 90 degrees clockwise
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "png": {"compress_level": 4},
    "jpeg": {"quality": 85},
    "jpeg_rotated": {"quality": 85},
    "webp": {"quality": 80, "method": 2},
    "avif": {"quality": 60, "speed": 10},
    "gif": {"save_all": True, "duration": 200},
}
_CONTENT_BYTES: Final = 19_200  # of a WAV: 0.2 s
_MAX_PROMPT_CHARS: Final = 120
_BOMB_PX: Final = (20_000, 15_000)


@dataclass(frozen=True, slots=True)
class File:
    data: bytes
    content_type: str


def generate(format_: str, seed: int, size_px: tuple[int, int] | None = None, prompt: str = "") -> File:
    """
    Return a file in one of the formats above; equal seeds give equal bytes, different seeds different bytes.

    Args:
        prompt: drawn into a picture.
        size_px: width and height of a picture; default: one of four, by the seed. Ignored for a video.
    """
    if format_ in FILE_FORMATS:
        build = _build_wav if format_ == "wav" else _build_glb
        return File(build(noise(_CONTENT_BYTES, seed)), content_type(format_))
    if format_ in VIDEO_FORMATS:  # its last box, which players skip, makes it unique
        box = f"seed {seed}".encode()
        data = _VIDEO.read_bytes() + struct.pack(">I", 8 + len(box)) + b"free" + box
    else:
        data = _encode(format_, seed, size_px or _SIZES[seed % len(_SIZES)], prompt[:_MAX_PROMPT_CHARS])
    return File(data, content_type(format_))


def list_folder(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the pictures and videos in a folder."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix[1:].lower() in CONTENT_TYPES))


def extension(format_: str) -> str:
    """Return the file extension of a format, or of a file in the folder: png, jpeg, mp4."""
    return format_.rpartition(".")[2].lower().removesuffix("_rotated")


def is_video(format_: str) -> bool:
    """Return True if a format, or a file in the folder, is a video."""
    return content_type(format_).startswith("video/")


def content_type(format_: str) -> str:
    return CONTENT_TYPES[extension(format_)]


def noise(length: int, seed: int) -> bytes:
    """Return pseudorandom bytes for a seed."""
    return hashlib.shake_128(seed.to_bytes(16, "big")).digest(length)


@functools.lru_cache(maxsize=64)
def _build_wav(samples: bytes) -> bytes:
    header = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, 48_000, 96_000, 2, 16, b"data", len(samples))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(header) + len(samples), b"WAVE") + header + samples


def _build_glb(content: bytes) -> bytes:
    text = b'{"asset":{"version":"2.0"}}'.ljust(28)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(content), b"BIN\0") + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


@functools.lru_cache(maxsize=128)  # a file is generated when it is created, and for each request
def _encode(format_: str, seed: int, size_px: tuple[int, int], prompt: str) -> bytes:
    image = _draw(size_px, f"{prompt} {seed} {format_}", prompt)
    target, options = io.BytesIO(), _OPTIONS[format_]
    if format_ == "jpeg_rotated":
        options = {**options, "exif": Image.Exif()}
        options["exif"][_ORIENTATION] = 6
    if format_ == "gif":
        frames = [image.rotate(angle).quantize(64, Image.Quantize.FASTOCTREE) for angle in (0, 90, 180)]
        image, options = frames[0], {**options, "append_images": frames[1:]}
    image.save(target, extension(format_).upper(), **options)
    return target.getvalue()


def _draw(size_px: tuple[int, int], name: str, prompt: str) -> Image.Image:
    """Return a sky in two colours, a sun, hills, and the words of the prompt, all chosen by the digest of `name`."""
    random = hashlib.shake_128(name.encode("utf-8", "replace")).digest(64)
    (width, height), hue = size_px, random[0] * 360 // 256
    sky = [ImageColor.getrgb(f"hsl({(hue + turn) % 360}, 65%, {light}%)") for turn, light in ((0, 32), (40, 76))]
    shade = Image.linear_gradient("L").resize(size_px)
    image = Image.composite(Image.new("RGB", size_px, sky[1]), Image.new("RGB", size_px, sky[0]), shade)
    draw = ImageDraw.Draw(image)
    x, y = width * (25 + random[1] // 2) // 178, height * (20 + random[2] // 4) // 178
    radius = min(size_px) * (20 + random[3] // 6) // 400
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=f"hsl({(hue + 60) % 360}, 90%, 88%)")
    for hill in range(4):
        high = [height * (40 + 12 * hill + random[8 * hill + i + 4] // 16) // 100 for i in range(8)]
        points = [(width * i // 7, high[i]) for i in range(8)]
        fill = f"hsl({(hue + 150 + 8 * hill) % 360}, 35%, {46 - 10 * hill}%)"
        draw.polygon([*points, size_px, (0, height)], fill=fill)
    if prompt:
        font = ImageFont.load_default(max(min(size_px) // 14, 8))
        text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()  # what the font has
        text = "\n".join(textwrap.wrap(text, max(width * 26 // min(size_px), 8))[:3])
        place = (width // 2, height * 94 // 100)
        draw.multiline_text(place, text, "white", font, "md", align="center", stroke_width=2, stroke_fill="#0008")
    return image


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@functools.cache
def bomb() -> File:
    """Return a valid PNG of 300 megapixels in about 40 kB."""
    width, height = _BOMB_PX
    row = bytes(1 + width // 8)  # one bit a pixel, no filter
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return File(b"\x89PNG\r\n\x1a\n" + chunks, CONTENT_TYPES["png"])
