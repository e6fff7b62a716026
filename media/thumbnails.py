"""Thumbnails: WebP, upright, sRGB, without metadata."""

import hashlib
import io
import struct
import time
from collections.abc import Callable
from typing import Final

from PIL import Image, ImageChops, ImageCms

from media import colors
from media.limits import Limits
from moorage.local_errors import find_local_failure
from moorage.model import Thumbnail

WarningSink = Callable[[str], None]

# Raised by Pillow for unreadable metadata, observed with some thousand hostile files.
METADATA_ERRORS: Final = (
    OSError, ValueError, RuntimeError, SyntaxError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError,
    struct.error, ImageCms.PyCMSError,
)  # fmt: skip
# By the table of docs/performance.md (make bench-thumbnails).
WEBP_METHOD: Final = 1
REDUCING_GAP: Final = 1.2
_ORIENTATION_TAG: Final = 0x0112
_TURN: Final = Image.Transpose
UPRIGHT_TRANSFORMS: Final = {  # by EXIF orientation
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip
_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def render_thumbnail(
    image: Image.Image, limits: Limits, on_warning: WarningSink = lambda _: None, cicp: tuple[int, int] | None = None
) -> Thumbnail:
    """
    Return a WebP that fits the thumbnail square and is never larger than the image, which is not modified.

    Unreadable metadata is ignored, and described to `on_warning`. A colour profile takes precedence over `cicp`.
    """
    started = time.perf_counter()
    small = _shrink(_clear_around_frame(image, _to_resizable(image)), limits.thumbnail_px)
    profile = image.info.get("icc_profile")
    small = _to_srgb(small, profile, on_warning)
    if cicp is not None and not profile:
        small = colors.to_srgb(small, cicp)
    elif not profile:
        small = _apply_gamma(small, image.info.get("gamma"))
    transform = UPRIGHT_TRANSFORMS.get(read_orientation(image, on_warning))
    if transform is not None:
        small = small.transpose(transform)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80, method=WEBP_METHOD, exif=b"", icc_profile=b"", xmp=b"")
    data = out.getvalue()
    color = _mean_color(small)
    seconds = time.perf_counter() - started
    return Thumbnail(data, hashlib.sha256(data).hexdigest(), small.width, small.height, color, seconds)


def _mean_color(image: Image.Image) -> str:
    """Return the mean colour of an upright RGB or RGBA image on white."""
    on_white = image
    if image.mode == "RGBA":
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image)
    red, green, blue = on_white.convert("RGB").resize((1, 1), Image.Resampling.BOX).tobytes()
    return f"#{red:02x}{green:02x}{blue:02x}"


def read_orientation(image: Image.Image, on_warning: WarningSink = lambda _: None) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if missing or unreadable. XMP is not consulted, as in browsers."""
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif") or b"")
        value = exif.get(_ORIENTATION_TAG, 1)
    except METADATA_ERRORS as error:
        if find_local_failure(error):
            raise
        on_warning("EXIF unreadable")
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if read_orientation(image) >= 5 else image.size


def _to_resizable(image: Image.Image) -> Image.Image:
    """Convert the image to a mode that can be resampled; transparency becomes an alpha channel."""
    transparency = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        return _convert_16_bit_grey(image, transparency)
    if image.mode == "1":
        grey = image.convert("L")
        return _add_alpha(grey, _mask_value(grey, transparency)) if isinstance(transparency, int) else grey
    if image.mode == "I":
        return image.point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data and image.mode != "RGBA":
        return image.convert("RGBA")
    return image if image.mode in ("RGB", "RGBA", "L", "CMYK") else image.convert("RGB")


def _convert_16_bit_grey(image: Image.Image, transparency: object) -> Image.Image:
    """Return the upper bytes, and alpha 0 where the value is the transparent one."""
    halves = Image.frombytes("LA", image.size, image.tobytes()).split()
    upper, lower = halves if image.mode == "I;16B" else reversed(halves)
    if not isinstance(transparency, int):
        return upper
    # The larger of two masks is opaque where one of the halves differs.
    mask = ImageChops.lighter(_mask_value(upper, transparency >> 8), _mask_value(lower, transparency & 0xFF))
    return _add_alpha(upper, mask)


def _mask_value(grey: Image.Image, transparent: int) -> Image.Image:
    return grey.point([0 if value == transparent else 255 for value in range(256)])


def _add_alpha(grey: Image.Image, alpha: Image.Image) -> Image.Image:
    return Image.merge("RGBA", (grey, grey, grey, alpha))


def _clear_around_frame(image: Image.Image, converted: Image.Image) -> Image.Image:
    """Return a GIF with its first frame on a transparent canvas; the decoder fills the canvas with a colour."""
    extent = getattr(image, "dispose_extent", None) if image.format == "GIF" else None
    if not extent or tuple(extent) == (0, 0, *image.size):
        return converted
    canvas = Image.new("RGBA", image.size)
    canvas.paste(converted.crop(extent), extent[:2])
    return canvas


def _shrink(image: Image.Image, square_px: int) -> Image.Image:
    scale = square_px / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)


def _to_srgb(image: Image.Image, profile: object, on_warning: WarningSink) -> Image.Image:
    """Convert to sRGB by the embedded profile; without a usable one, the values are assumed to be sRGB."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    color = image.convert("RGB") if alpha else image
    converted = _apply_profile(color, profile, on_warning) if isinstance(profile, bytes) and profile else None
    result = (converted or color).convert("RGB")
    if alpha:
        result.putalpha(alpha)
    return result


def _apply_profile(image: Image.Image, profile: bytes, on_warning: WarningSink) -> Image.Image | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except METADATA_ERRORS:
        on_warning("colour profile unusable")
        return None


def _apply_gamma(image: Image.Image, gamma: object) -> Image.Image:
    """Convert from the gamma that a PNG states (`gAMA`) to that of sRGB; a difference of 5 % is not visible."""
    if not isinstance(gamma, float) or not 0.05 < gamma < 20 or abs(gamma * 2.2 - 1) < 0.05:
        return image
    curve = [round(255 * (value / 255) ** (1 / (gamma * 2.2))) for value in range(256)]
    identity = list(range(256))
    return image.point(curve * 3 + (identity if image.mode == "RGBA" else []))
