"""The placeholder: an image published if no entry of the chain produced files and the job requested one."""

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
from moorage import ids, logs
from moorage.errors import ConfigError, InvalidMedia, ResourceExhausted
from moorage.local_errors import find_local_failure
from moorage.model import Job, Output, Wake
from moorage.retry_policy import DeadLetterDecision
from moorage.settings import Settings
from moorage.text import to_storable
from tasks.step import Deps

DEFAULT_SIZE: Final = (1024, 1024)
SIDE_LIMITS: Final = range(64, 2049)  # larger sizes are scaled down in proportion
_TOP, _BOTTOM, _INK = (238, 240, 243), (208, 213, 220), (168, 175, 186)
_NAMED: Final[Mapping[str, tuple[int, int]]] = {  # image_size of fal.ai, docs of 2026-11
    "square": (512, 512),
    "square_hd": DEFAULT_SIZE,
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
_SIZE: Final = re.compile(r"([1-9]\d{1,4})\s*[x*]\s*([1-9]\d{1,4})")
_RATIO: Final = re.compile(r"(\d{1,3}(?:\.\d+)?)\s*[:/]\s*(\d{1,3}(?:\.\d+)?)")

log = logs.get_logger(__name__)


def placeholder_state(job: Job, existing: tuple[UUID, str] | None) -> Literal["none", "wanted", "kept"]:
    if existing is None:
        return "wanted" if job.placeholder else "none"
    return "kept" if existing[1] == "kept" else "none"


def placeholder_reason(reason: str) -> str:
    return f"placeholder: {reason}"


def choose_placeholder(conn: Connection, job: Job, decision: DeadLetterDecision, *, actor: str) -> list[Wake]:
    """Choose the placeholder for a locked open job; its output is kept like any other. Returns its wake."""
    reason = placeholder_reason(decision.reason)
    prediction_id = placeholders.add_prediction(conn, ids.uuid7(), job.id, to_storable(decision.reason), actor)
    jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=prediction_id, reason=reason)
    return [Wake("keep", placeholders.add_output(conn, ids.uuid7(), job.id, prediction_id, actor))]


def load_image(deps: Deps, output: Output) -> bytes:
    """Return the bytes of MOORAGE_PLACEHOLDER_FILE, or draw an image of the size that the job requested."""
    file = deps.settings.placeholder_file
    if file is not None:
        try:
            return file.read_bytes()
        except OSError as error:  # logged, and an image is drawn: the job must not fail
            failure = find_local_failure(error)
            if isinstance(failure, ResourceExhausted):
                raise failure from error
            log.error("placeholder.file_unreadable", file=str(file), error=f"{type(error).__name__}: {error}")
    job = deps.database.run(lambda conn: jobs.lock(conn, output.job_id))
    inputs = (entry["input"] for entry in job.fallback_chain or ())
    return draw_image(next((size for model_input in inputs if (size := requested_size(model_input))), DEFAULT_SIZE))


def check_placeholder_file(settings: Settings, limits: Limits) -> None:
    file = settings.placeholder_file
    if file is None:
        return
    try:
        with download.spool_bytes(file.read_bytes(), limits) as fetched:
            media = validate.validate_file(fetched, limits).media.media
    except (OSError, InvalidMedia) as error:
        raise ConfigError(f"MOORAGE_PLACEHOLDER_FILE={file} cannot be a placeholder: {error}") from error
    if media != "image":
        raise ConfigError(f"MOORAGE_PLACEHOLDER_FILE={file} is a {media}: it must be an image")


def requested_size(model_input: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height in px that a model's input requests, within SIDE_LIMITS; None if it has no size."""
    for value in (model_input, *(model_input.get(key) for key in ("size", "image_size", "resolution"))):
        sides: tuple[object, ...] = ()
        if isinstance(value, Mapping):
            sides = (value.get("width"), value.get("height"))
        elif isinstance(value, str):
            match = _SIZE.fullmatch(value)
            sides = (int(match[1]), int(match[2])) if match else _NAMED.get(value, ())
        numbers = [side for side in sides if isinstance(side, int | float) and not isinstance(side, bool)]
        if len(numbers) == 2 and all(0 < number < 100_000 for number in numbers):
            return _limit(*numbers)
    ratio = model_input.get("aspect_ratio")
    match = _RATIO.fullmatch(ratio) if isinstance(ratio, str) else None
    across, down = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not across or not down:
        return None
    height = math.sqrt(DEFAULT_SIZE[0] * DEFAULT_SIZE[1] * down / across)  # about one megapixel
    return _limit(round(height * across / down / 8) * 8, round(height / 8) * 8)


def _limit(width: float, height: float) -> tuple[int, int]:
    scale = min(1.0, (SIDE_LIMITS.stop - 1) / max(width, height))
    return max(SIDE_LIMITS.start, round(width * scale)), max(SIDE_LIMITS.start, round(height * scale))


def draw_image(size: tuple[int, int]) -> bytes:
    shade = Image.linear_gradient("L").resize(size)
    image = Image.composite(Image.new("RGB", size, _BOTTOM), Image.new("RGB", size, _TOP), shade)
    side = min(size) // 4
    icon = _draw_icon(side * 4).resize((side, side), Image.Resampling.LANCZOS)  # drawn larger for smooth edges
    image.paste(_INK, ((size[0] - side) // 2, (size[1] - side) // 2), icon)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _draw_icon(side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    pen, unit = ImageDraw.Draw(mask), side / 24
    pen.rounded_rectangle((2 * unit, 4 * unit, 22 * unit, 20 * unit), 2 * unit, outline=255, width=round(1.3 * unit))
    pen.ellipse((6 * unit, 7.5 * unit, 9.2 * unit, 10.7 * unit), fill=255)
    hills = ((4.5, 17.5), (9.3, 12.3), (12.2, 15), (15.6, 10.4), (19.5, 17.5))
    pen.polygon([(x * unit, y * unit) for x, y in hills], fill=255)
    return mask
