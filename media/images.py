"""Validation of images: every frame is decoded completely, within the limits."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from PIL import AvifImagePlugin, Image

from media import thumbnails, truncation
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import InvalidMedia, MoorageError
from moorage.local_errors import build_failure, find_local_failure
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the default uses every core in each worker process


def validate_image(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> tuple[Media, Thumbnail]:
    """Return properties and thumbnail of an image from the same pixels; raises InvalidMedia, LocalFailure."""
    facts: dict[str, Any] = {"format": kind.name, "bytes": fetched.size_bytes}
    with _translate_decoder_errors(facts, limits):
        if truncation.is_truncated(fetched.file, kind):
            raise InvalidMedia(f"the {kind.name.upper()} is truncated: its end is missing", facts=facts)
        _open(fetched.file, kind).verify()  # verifies the checksum of every PNG chunk, which load() does not
        return _decode(_open(fetched.file, kind), kind, limits, facts)


def _open(file: BinaryIO, kind: FileFormat) -> Image.Image:
    file.seek(0)
    return Image.open(file, formats=[kind.name.upper()])


def _decode(image: Image.Image, kind: FileFormat, limits: Limits, facts: dict[str, Any]) -> tuple[Media, Thumbnail]:
    # A JPEG with further images inside (gain maps, previews of phones) opens as MPO: the first one is used.
    frames = 1 if kind.name == "jpeg" else int(getattr(image, "n_frames", 1))
    _check_size(image, frames, limits, facts)
    notes: list[str] = []
    image.load()
    thumbnail = thumbnails.render_thumbnail(image, limits, notes.append)
    width, height = thumbnails.read_upright_size(image)
    for index in range(1, frames):
        facts["frame"] = index
        image.seek(index)
        image.load()
    return Media(
        "image", kind.name, kind.content_type, kind.extension, width, height, frames,
        notes=to_storable("; ".join(dict.fromkeys(notes)), 1000) or None,
    ), thumbnail  # fmt: skip


def _check_size(image: Image.Image, frames: int, limits: Limits, facts: dict[str, Any]) -> None:
    facts.update(width_px=image.width, height_px=image.height, frames=frames)
    if frames > (limit := limits.max_frames):
        raise InvalidMedia(f"{frames} frames, the limit is {limit}", facts={**facts, "limit": limit})
    pixels = image.width * image.height * frames
    if pixels > limits.image_max_pixels:
        raise _too_many_pixels(pixels, limits, facts)


def _too_many_pixels(pixels: int | None, limits: Limits, facts: dict[str, Any]) -> InvalidMedia:
    shown, limit = "too many" if pixels is None else str(pixels), limits.image_max_pixels
    return InvalidMedia(f"{shown} pixels, the limit is {limit}", facts={**facts, "pixels": pixels, "limit": limit})


@contextmanager
def _translate_decoder_errors(facts: dict[str, Any], limits: Limits) -> Iterator[None]:
    """Convert errors of the decoder: they are the fault of the file, except for errors of the machine."""
    Image.MAX_IMAGE_PIXELS = limits.image_max_pixels  # checked by Pillow before it decodes a frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except MoorageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_many_pixels(_parse_pixels(error), limits, facts) from error
        except Exception as error:  # the one call into a decoder, which raises a dozen types
            if isinstance(error, OSError) and error.errno is not None:
                raise build_failure("reading the temporary file", error) from error
            if failure := find_local_failure(error):  # not enough memory
                raise failure from error
            reason = to_storable(f"{type(error).__name__}: {error}", 500)
            message = f"not decodable as {facts['format']}: {reason}"
            raise InvalidMedia(message, facts={**facts, "decoder": reason}) from error


def _parse_pixels(error: Exception) -> int | None:
    match = re.search(r"\((\d+) pixels\)", str(error))
    return int(match.group(1)) if match else None
