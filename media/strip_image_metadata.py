"""
Removal of metadata from images: the container is walked part by part; only parts that affect the display are copied.

Nothing is decoded, so no pixel changes, except of images that must be re-encoded to look the same: rotated ones, and
AVIF. Parts that are not known to be needed are removed, including unknown ones; colour profiles, gamma and animation
remain. The files were decoded completely before; one that still does not parse is refused.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from PIL import Image, JpegImagePlugin

from media import gif, images, jpeg, png, sniff, thumbnails, webp
from media.containers import ContainerError, Data, map_file
from moorage.errors import InvalidMedia
from moorage.model import Media

_PNG_KEPT: Final = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"cLLI",
     b"sBIT", b"bKGD", b"pHYs", b"acTL", b"fcTL", b"fdAT"}
)  # fmt: skip
_WEBP_KEPT: Final = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})
_WEBP_FRAME_KEPT: Final = frozenset({b"VP8 ", b"VP8L", b"ALPH"})
_WEBP_EXIF_XMP: Final = 0x0C  # flags in VP8X for metadata


def strip_jpeg(data: Data) -> Iterator[bytes]:
    """Yield tables, frames and scans, the JFIF header without its preview, the colour profile and Adobe's flag."""
    yield b"\xff\xd8"
    for marker, start, end in jpeg.iterate_segments(data):
        if marker == jpeg.ENTROPY:
            yield data[start:end]
        elif marker == jpeg.EOI:
            yield b"\xff\xd9"
            return
        elif marker == jpeg.SOI or (marker != jpeg.TEM and int.from_bytes(data[start : start + 2], "big") < 2):
            raise InvalidMedia("the jpeg has a segment without a length")
        elif (content := _strip_jpeg_segment(marker, data[start + 2 : end])) is not None:
            yield b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content
    raise InvalidMedia("the jpeg has no end")


def _strip_jpeg_segment(marker: int, content: bytes) -> bytes | None:
    if marker == 0xE0 and content.startswith(b"JFIF\x00") and len(content) >= 14:
        return content[:12] + b"\x00\x00"  # version and density; a preview image may follow
    if marker == 0xE2:
        return content if content.startswith(b"ICC_PROFILE\x00") else None
    if marker == 0xEE:
        return content[:12] if content.startswith(b"Adobe") and len(content) >= 12 else None
    return content if 0xC0 <= marker <= 0xCF or 0xDA <= marker <= 0xDF else None


def strip_png(data: Data) -> Iterator[bytes]:
    """Yield pixels, palette, colour, density and frames, up to the end chunk."""
    yield data[:8]
    for kind, start, end in png.iterate_chunks(data):
        checksum = int.from_bytes(data[end - 4 : end], "big")
        if kind in _PNG_KEPT and zlib.crc32(data[start + 4 : end - 4]) == checksum:
            yield data[start:end]
        if kind == b"IEND":
            return
    raise InvalidMedia("the png has no end")


def strip_gif(data: Data) -> Iterator[bytes]:
    """Yield frames, their timing and the loop count, without comments, texts and application blocks."""
    try:
        pieces = gif.scan_gif(data).pieces
    except ContainerError as error:
        raise InvalidMedia(f"the gif is {error}") from error
    yield from (piece if isinstance(piece, bytes) else data[piece[0] : piece[1]] for piece in pieces)


def strip_webp(data: Data) -> Iterator[bytes]:
    """Yield image data, transparency, animation and colour profile."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    chunks = webp.iterate_riff_chunks(data, 12, end)
    parts = [part for kind, start, end in chunks if (part := _strip_webp_chunk(kind, data[start:end]))]
    yield b"RIFF" + (4 + sum(map(len, parts))).to_bytes(4, "little") + b"WEBP"
    yield from parts


def _strip_webp_chunk(kind: bytes, content: bytes) -> bytes | None:
    if kind not in _WEBP_KEPT:
        return None
    if kind == b"VP8X":
        content = bytes([content[0] & ~_WEBP_EXIF_XMP]) + content[1:]
    if kind == b"ANMF":
        chunks = webp.iterate_riff_chunks(content, 16, len(content))
        frame = (_build_chunk(k, content[start:end]) for k, start, end in chunks if k in _WEBP_FRAME_KEPT)
        content = content[:16] + b"".join(frame)
    return _build_chunk(kind, content)


def _build_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4, "little") + content + b"\x00" * (len(content) % 2)


STRIP_BY_FORMAT: Final[dict[str, Callable[[Data], Iterator[bytes]]]] = {
    "jpeg": strip_jpeg, "png": strip_png, "gif": strip_gif, "webp": strip_webp
}  # fmt: skip


def strip_image(file: BinaryIO, media: Media) -> Iterator[bytes]:
    """Yield the image without metadata; raises InvalidMedia if an animation would have to be re-encoded."""
    if reencoded := reencode_if_needed(file, media):
        encoding, encoded = reencoded
        yield from STRIP_BY_FORMAT[encoding](encoded)
    else:
        with map_file(file) as data:
            yield from STRIP_BY_FORMAT[media.format](data)


def reencode_if_needed(file: BinaryIO, media: Media) -> tuple[str, bytes] | None:
    """
    Return format and bytes of the upright image with its colour profile; None if the image can stay as it is.

    A JPEG keeps its quantization, a lossless WebP remains lossless. An AVIF becomes a PNG, which is lossless and which
    models accept. Raises InvalidMedia if an animation needs it.
    """
    kind = sniff.IMAGES[media.format]
    scan = images.scan_image(file, kind)
    with images.open_image(file, kind, scan) as image:
        transform = thumbnails.UPRIGHT_TRANSFORMS.get(thumbnails.read_orientation(image))
        if transform is None and media.format != "avif":
            return None
        if (media.frames or 1) > 1:
            reason = "" if media.format == "avif" else " with an EXIF rotation"
            remedy = "send an upright GIF or WebP, or a video"
            raise InvalidMedia(f"an animated {media.format}{reason} is not supported: {remedy}")
        image.load()
        upright = image.transpose(transform) if transform is not None else image
        file.seek(0)
        return _encode(image, upright, media.format, lossless=b"VP8L" in file.read(64))


def _encode(image: Image.Image, upright: Image.Image, encoding: str, *, lossless: bool) -> tuple[str, bytes]:
    out = io.BytesIO()
    profile = image.info.get("icc_profile") or b""
    if encoding == "jpeg":
        tables = getattr(image, "quantization", None)
        sampling = JpegImagePlugin.get_sampling(image)
        upright.save(out, "JPEG", qtables=tables, subsampling=max(sampling, 0), icc_profile=profile)
    elif encoding == "webp":
        upright.save(out, "WEBP", lossless=lossless, quality=95, icc_profile=profile)
    else:
        encoding = "png"
        upright.save(out, "PNG", icc_profile=profile or None)
    return encoding, out.getvalue()
