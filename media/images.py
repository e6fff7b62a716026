"""Validation of images: every frame is decoded completely, within the limits."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

from PIL import AvifImagePlugin, Image, ImageChops

from media import avif, confined, gif, jpeg, png, thumbnails, webp
from media.containers import MAX_PARTS, ContainerError, Data, ImageScan, Piece, map_file, open_pieces
from media.limits import Limits
from media.sniff import FileFormat
from moorage.errors import InvalidMedia, MoorageError
from moorage.local_errors import build_failure, find_local_failure
from moorage.model import FetchedFile, Media, Thumbnail
from moorage.text import to_storable

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the default uses every core in each worker process

# Above one of these, an image is decoded in a process of its own: the worker stays below 256 MB (make bench-media).
_INLINE_PIXELS: Final = 2**22  # of a frame
_INLINE_ANIMATION_PIXELS: Final = 2**24  # decoders of video codecs hold several frames
INLINE_BYTES: Final = 16 * 2**20  # of other files, too
_BAND_PX: Final = 8
_MIN_FRAME_PIXELS: Final = 2**14  # what a frame counts at least: decoding costs time also for one pixel
_SCANS: Final[dict[str, Callable[[Data], ImageScan]]] = {
    "png": png.scan_png, "jpeg": jpeg.scan_jpeg, "gif": gif.scan_gif, "webp": webp.scan_webp,
    "avif": avif.scan_avif,
}  # fmt: skip


def validate_image(fetched: FetchedFile, kind: FileFormat, limits: Limits) -> tuple[Media, Thumbnail | None]:
    """Return properties and thumbnail of an image from the same pixels; raises InvalidMedia, LocalFailure."""
    facts: dict[str, Any] = {"format": kind.name, "bytes": fetched.size_bytes}
    if fetched.size_bytes > INLINE_BYTES and not limits.is_confined:
        return confined.validate_in_process(fetched, limits, facts)
    with _translate_decoder_errors(facts, limits):
        scan = scan_image(fetched.file, kind)
        _check_size(scan.width_px, scan.height_px, scan.frames, limits, facts)
        pixels = scan.width_px * scan.height_px
        total = max(pixels, _MIN_FRAME_PIXELS) * scan.frames
        is_large = pixels > _INLINE_PIXELS or (scan.frames > 1 and total > _INLINE_ANIMATION_PIXELS)
        if limits.is_confined or not (is_large or scan.added_pieces > MAX_PARTS):
            return _decode(fetched.file, kind, scan, limits, facts)
    return confined.validate_in_process(fetched, limits, facts)


def scan_image(file: BinaryIO, kind: FileFormat) -> ImageScan:
    with map_file(file) as data:
        return _SCANS[kind.name](data)


def _check_size(width: int, height: int, frames: int, limits: Limits, facts: dict[str, Any]) -> None:
    facts.update(width_px=width, height_px=height, frames=frames)
    if width * height > limits.image_max_pixels:
        raise _too_many_pixels(width * height, limits, facts)
    total, limit = max(width * height, _MIN_FRAME_PIXELS) * frames, limits.animation_max_pixels
    if frames > 1 and total > limit:
        raise InvalidMedia(
            f"{frames} frames of {width} x {height} pixels: more than MOORAGE_ANIMATION_MAX_PIXELS ({limit})",
            facts={**facts, "pixels": total, "limit": limit},
        )


def _too_many_pixels(pixels: int | None, limits: Limits, facts: dict[str, Any]) -> InvalidMedia:
    shown, limit = "too many" if pixels is None else str(pixels), limits.image_max_pixels
    message = f"{shown} pixels, the limit is {limit} (MOORAGE_IMAGE_MAX_PIXELS)"
    return InvalidMedia(message, facts={**facts, "pixels": pixels, "limit": limit})


def _decode(
    file: BinaryIO, kind: FileFormat, scan: ImageScan, limits: Limits, facts: dict[str, Any]
) -> tuple[Media, Thumbnail]:
    notes = list(scan.notes)
    image, factor = _open_complete(file, kind, scan, limits, notes)
    with image:
        frames = int(getattr(image, "n_frames", 1))
        _check_size(image.width * factor, image.height * factor, frames, limits, facts)
        first = 1 if frames > 1 and getattr(image, "default_image", False) else 0  # APNG: frame 0 may not be shown
        if first:
            image.seek(first)
            image.load()
        thumbnail = thumbnails.render_thumbnail(image, limits, notes.append, scan.cicp)
        width, height = (side * factor for side in thumbnails.read_upright_size(image))
        for index in range(first + 1, frames):
            facts["frame"] = index
            image.seek(index)
            image.load()
    return Media(
        "image", kind.name, kind.content_type, kind.extension, width, height, frames - first,
        notes=to_storable("; ".join(dict.fromkeys(notes)), 1000) or None,
    ), thumbnail  # fmt: skip


def open_image(file: BinaryIO, kind: FileFormat, scan: ImageScan) -> Image.Image:
    """Open an image without the parts that could make the decoder fail; the caller closes it."""
    image = _open(file, kind, scan.pieces)
    image.info.update(scan.info)
    return image


def _open(file: BinaryIO, kind: FileFormat, pieces: list[Piece]) -> Image.Image:
    return Image.open(open_pieces(file, pieces), formats=[kind.name.upper()])


def _open_complete(
    file: BinaryIO, kind: FileFormat, scan: ImageScan, limits: Limits, notes: list[str]
) -> tuple[Image.Image, int]:
    """Decode the first frame, and refuse pixel data that ends early; also return by what both sides were divided."""
    if isinstance(scan, jpeg.JpegScan) and (pieces := jpeg.build_unended(scan)) is not None:
        image = _open(file, kind, pieces)
        factor = _find_reduction(image, limits.thumbnail_px)
        image.draft(None, (image.width // factor, image.height // factor))
        with contextlib.suppress(OSError):  # more data was requested: the longer way finds out why
            image.load()
            return image, factor
    image = open_image(file, kind, scan)
    try:
        image.load()
    finally:  # its reason is more precise than the decoder's
        if kind.name == "png" and not _has_last_row(image, scan):
            with map_file(file) as data:
                png.check_pixels(file, data, is_animated=scan.frames > 1)
    if isinstance(scan, jpeg.JpegScan):
        _refuse_truncated_jpeg(file, kind, scan, image, notes)
    return image, 1


def _find_reduction(image: Image.Image, thumbnail_px: int) -> int:
    """Return by which factor libjpeg may reduce both sides, without a remainder, for a thumbnail of this size."""
    largest = max(image.size) / (thumbnail_px * thumbnails.REDUCING_GAP)
    return next((n for n in (8, 4, 2) if n <= largest and image.width % n == image.height % n == 0), 1)


def _has_last_row(image: Image.Image, scan: ImageScan) -> bool:
    """Return whether the last row was decoded: rows are decoded in order, into memory of zeros."""
    if getattr(image, "tile", None) or scan.frames > 1 or image.info.get("interlace"):
        return False
    return image.crop((0, image.height - 1, *image.size)).getbbox(alpha_only=False) is not None


def _refuse_truncated_jpeg(
    file: BinaryIO, kind: FileFormat, scan: jpeg.JpegScan, image: Image.Image, notes: list[str]
) -> None:
    """
    Refuse a JPEG whose pixels change with bytes that a decoder of complete data does not read.

    Up to one block is noted: some encoders omit its last bits.
    """
    with map_file(file) as data:
        variants = jpeg.build_filled_variants(data, scan)
    for pieces in variants:
        with _open(file, kind, pieces) as filled:
            filled.load()
            changed = _count_changed_pixels(image, filled)
        if changed > scan.block_pixels:
            raise ContainerError("truncated: its pixel data ends early")
        if changed:
            notes.append("the data of one block of pixels ends early")


def _count_changed_pixels(image: Image.Image, other: Image.Image) -> int:
    """Return the area of the rectangles that differ, in bands of the height of a block."""
    total = 0
    for top in range(0, image.height, _BAND_PX):
        band = (0, top, image.width, min(image.height, top + _BAND_PX))
        if box := ImageChops.difference(image.crop(band), other.crop(band)).getbbox():
            total += (box[2] - box[0]) * (box[3] - box[1])
    return total


@contextlib.contextmanager
def _translate_decoder_errors(facts: dict[str, Any], limits: Limits) -> Iterator[None]:
    """Convert errors of the decoder: they are the fault of the file, except for errors of the machine."""
    Image.MAX_IMAGE_PIXELS = limits.image_max_pixels  # checked by Pillow before it decodes a frame
    name = str(facts["format"]).upper()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except MoorageError:
            raise
        except ContainerError as error:
            raise InvalidMedia(f"the {name} is {error}", facts=facts) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            stated = re.search(r"\((\d+) pixels\)", str(error))
            raise _too_many_pixels(int(stated[1]) if stated else None, limits, facts) from error
        except Exception as error:  # the one call into a decoder, which raises a dozen types
            if isinstance(error, OSError) and error.errno is not None:
                raise build_failure("reading the temporary file", error) from error
            if failure := find_local_failure(error):  # not enough memory
                failure.facts.update(facts)
                raise failure from error
            message = f"the {name} is damaged: its pixels cannot be decoded"
            text = re.sub("<[^>]*>", "(file)", str(error))  # without representations of objects
            decoder = to_storable(f"{type(error).__name__}: {text}", 500)
            raise InvalidMedia(message, facts={**facts, "decoder": decoder}) from error
