"""Images that must be re-encoded to look the same without metadata: rotated ones, and AVIF."""

import io
from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from media import images, sniff, thumbnails
from moorage.errors import InvalidMedia
from moorage.model import Media


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
        return "jpeg", out.getvalue()
    if encoding == "webp":
        upright.save(out, "WEBP", lossless=lossless, quality=95, icc_profile=profile)
        return "webp", out.getvalue()
    upright.save(out, "PNG", icc_profile=profile or None)
    return "png", out.getvalue()
