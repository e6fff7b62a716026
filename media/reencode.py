"""Pictures that must be encoded anew to be shown alike without their metadata: turned ones, and AVIF."""

import io
from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from media import thumbnails
from moorage.errors import InvalidMedia
from moorage.model import Media

_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "avif": "AVIF"}


def reencode_if_needed(file: BinaryIO, media: Media) -> tuple[str, bytes] | None:
    """
    Return the format and bytes of a picture as it is seen, with its colour profile; None when it may stay as it is.

    A JPEG keeps its quantization, a lossless WebP is lossless again. An AVIF becomes a PNG, which loses nothing and
    which models take.

    Raises:
        Invalid: it has several frames and would have to be encoded anew: they would not stay what they are.
    """
    file.seek(0)
    with Image.open(file, formats=[_FORMATS[media.format]]) as image:
        turn = thumbnails.UPRIGHT_TRANSFORMS.get(thumbnails.read_orientation(image))
        if turn is None and media.format != "avif":
            return None
        if (media.frames or 1) > 1:
            raise InvalidMedia(
                f"a moving {media.format}"
                + ("" if media.format == "avif" else " that its metadata turns")
                + " cannot be freed of metadata frame by frame: send a GIF or WebP that stands upright, or a video"
            )
        image.load()
        upright = image.transpose(turn) if turn is not None else image
        file.seek(0)
        return _saved(image, upright, media.format, lossless=b"VP8L" in file.read(64))


def _saved(image: Image.Image, upright: Image.Image, encoding: str, *, lossless: bool) -> tuple[str, bytes]:
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
