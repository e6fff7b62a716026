"""The placeholder: a picture that stands in where the whole chain brought nothing, if the job asked for one."""

import io
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal
from uuid import UUID

from PIL import Image, ImageDraw

from db import jobs, placeholders
from db.connection import Connection
from egress import download
from media import validate
from media.limits import Limits
from moorage import logs
from moorage.errors import ConfigError, InvalidMedia
from moorage.lifecycle import DeadLetterDecision
from moorage.model import Job, Output, Wake
from moorage.settings import Settings
from moorage.text import to_storable
from tasks.step import Deps

DEFAULT_SIZE: Final = (1024, 1024)
SIDE_LIMITS: Final = range(64, 2049)  # a wish beyond is brought within, its proportions kept
_TOP, _BOTTOM, _INK = (238, 240, 243), (208, 213, 220), (168, 175, 186)
_NAMED: Final[Mapping[str, tuple[int, int]]] = {  # image_size of fal.ai, docs of 2026-11
    "square": (512, 512),
    "square_hd": DEFAULT_SIZE,
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}

log = logs.get_logger(__name__)


def placeholder_state(job: Job, stands_in: tuple[UUID, str] | None) -> Literal["none", "wanted", "kept"]:
    """Return whether a job's placeholder is still to be made or stands already; none also when it could not be kept."""
    if stands_in is None:
        return "wanted" if job.placeholder else "none"
    return "kept" if stands_in[1] == "kept" else "none"


def placeholder_reason(why: str) -> str:
    """Return what a job that shows a placeholder says."""
    return why if why.startswith("placeholder: ") else f"placeholder: {why}"


def choose_placeholder(conn: Connection, job: Job, why: DeadLetterDecision, *, actor: str) -> list[Wake]:
    """Give a locked open job its placeholder, which takes the path of any file; returns its wake."""
    prediction_id = placeholders.add_prediction(conn, job.id, to_storable(why.reason), actor)
    jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=prediction_id, reason=placeholder_reason(why.reason))
    return [Wake("keep", placeholders.add_output(conn, job.id, prediction_id, actor))]


def load_image(deps: Deps, output: Output) -> bytes:
    """Return the bytes of a placeholder: MOORAGE_PLACEHOLDER_FILE, else one of the size that the job asked for."""
    file = deps.settings.placeholder_file
    if file is not None:
        try:
            return file.read_bytes()
        except OSError as error:  # the job shall not fail for it: one is drawn, and a person told
            log.error("placeholder.file_unreadable", file=str(file), error=f"{type(error).__name__}: {error}")
    job = deps.database.run(lambda conn: jobs.lock(conn, output.job_id))
    inputs = (entry["input"] for entry in job.chain or ())
    return draw_image(next((size for given in inputs if (size := requested_size(given))), DEFAULT_SIZE))


def check_placeholder_file(settings: Settings, limits: Limits) -> None:
    """
    Return when MOORAGE_PLACEHOLDER_FILE can be a placeholder, or is not set.

    Raises:
        ConfigError: it cannot be read, or is no whole picture.
    """
    file = settings.placeholder_file
    if file is None:
        return
    try:
        with download.spool_bytes(file.read_bytes(), limits) as fetched:
            media = validate.validate_file(fetched, limits).media.media
    except (OSError, InvalidMedia) as error:
        raise ConfigError(f"MOORAGE_PLACEHOLDER_FILE={file} cannot be a placeholder: {error}") from error
    if media != "image":
        raise ConfigError(f"MOORAGE_PLACEHOLDER_FILE={file} is a {media}: name a picture")


def requested_size(given: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height in pixels that a model's input asks for, within SIDES; None: it does not say."""
    said = (given, *(given.get(key) for key in ("size", "image_size", "resolution")))
    sizes = (_of_sides(one) if isinstance(one, Mapping) else _of_name(one) for one in said)
    return next((size for size in sizes if size), None) or _of_ratio(given.get("aspect_ratio"))


def _of_sides(given: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = given.get("width"), given.get("height")
    for side in (width, height):
        if not isinstance(side, int | float) or isinstance(side, bool) or not 0 < side < 100_000:
            return None
    return _within(float(width or 0), float(height or 0))


def _of_name(name: object) -> tuple[int, int] | None:
    if not isinstance(name, str):
        return None
    found = re.fullmatch(r"([1-9]\d{1,4})\s*[x*]\s*([1-9]\d{1,4})", name)
    return _within(int(found[1]), int(found[2])) if found else _NAMED.get(name)


def _of_ratio(ratio: object) -> tuple[int, int] | None:
    """Return a size of about one megapixel."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*[:/]\s*(\d{1,3}(?:\.\d+)?)", ratio) if isinstance(ratio, str) else None
    across, down = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if not across or not down:
        return None
    height = math.sqrt(DEFAULT_SIZE[0] * DEFAULT_SIZE[1] * down / across)
    return _within(round(height * across / down / 8) * 8, round(height / 8) * 8)


def _within(width: float, height: float) -> tuple[int, int]:
    scale = min(1.0, (SIDE_LIMITS.stop - 1) / max(width, height))
    return max(SIDE_LIMITS.start, round(width * scale)), max(SIDE_LIMITS.start, round(height * scale))


def draw_image(size: tuple[int, int]) -> bytes:
    """Return a neutral picture as PNG: a soft grey with the outline of a picture in its middle."""
    shade = Image.linear_gradient("L").resize(size)
    image = Image.composite(Image.new("RGB", size, _BOTTOM), Image.new("RGB", size, _TOP), shade)
    side = min(size) // 4
    sign = _sign(side * 4).resize((side, side), Image.Resampling.LANCZOS)  # drawn large: smooth edges
    image.paste(_INK, ((size[0] - side) // 2, (size[1] - side) // 2), sign)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _sign(side: int) -> Image.Image:
    """Return the mask of a framed landscape: a sun over two hills."""
    mask = Image.new("L", (side, side), 0)
    pen, unit = ImageDraw.Draw(mask), side / 24
    pen.rounded_rectangle((2 * unit, 4 * unit, 22 * unit, 20 * unit), 2 * unit, outline=255, width=round(1.3 * unit))
    pen.ellipse((6 * unit, 7.5 * unit, 9.2 * unit, 10.7 * unit), fill=255)
    hills = ((4.5, 17.5), (9.3, 12.3), (12.2, 15), (15.6, 10.4), (19.5, 17.5))
    pen.polygon([(x * unit, y * unit) for x, y in hills], fill=255)
    return mask
