"""
The models of the stand-in, each with the schema of its input; docs/reference/stand-in.md lists their behaviour.

The names have the same behaviour at fal and OpenAI, without a schema. A model with any other name accepts any input and
is healthy.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from simulation.provider import pictures, schemas

# The default models of moorage, which the stand-in knows by name.
REPLICATE_MODELS: Final = (
    "black-forest-labs/flux-schnell", "black-forest-labs/flux-dev", "black-forest-labs/flux-kontext-pro",
    "google/nano-banana", "minimax/video-01", "kwaivgi/kling-v2.1",
)  # fmt: skip
FAL_MODELS: Final = (
    "fal-ai/flux/schnell", "fal-ai/flux/dev", "fal-ai/flux/dev/image-to-image",
    "fal-ai/minimax/video-01", "fal-ai/minimax/video-01/image-to-video",
)  # fmt: skip
_COUNT_FIELDS: Final = ("num_outputs", "num_images", "n")
_MAX_OUTPUTS: Final = 10


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    description: str
    kind: str = "image"  # or video
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the script's keys
    fields: Mapping[str, dict[str, Any]] = field(default_factory=lambda: schemas.PICTURE_INPUT)
    required: tuple[str, ...] = ("prompt",)

    @property
    def version(self) -> str:
        """Return the id of its only version."""
        return hashlib.sha256(self.name.encode()).hexdigest()


_VIDEO: Final = {"shape": "string", "outputs": 1, "duration_s": 1.0}
_IMAGE_TO_VIDEO: Final = {"image": schemas.IMAGE, **schemas.VIDEO_INPUT}
MODELS: Final[Mapping[str, Model]] = {
    model.name: model
    for model in (
        Model("standin/pictures", "Pictures of a harbour"),
        Model("standin/text-to-video", "A video of a harbour", "video", _VIDEO, schemas.VIDEO_INPUT),
        Model("standin/image-to-video", "A video of a picture", "video", _VIDEO, _IMAGE_TO_VIDEO, ("image",)),
        Model("standin/slow", "Pictures, after 20 s", defaults={"duration_s": 20.0}),
        Model("standin/failing", "Every prediction fails", defaults={"status": "failed"}),
        Model("standin/busy", "Returns 429 first", defaults={"submit": "busy", "submit_times": 1}),
        Model("standin/no-credit", "Rejects for lack of credit", defaults={"submit": "no_credit"}),
        Model("standin/broken", "Returns 500", defaults={"submit": "500_before"}),
        *(
            Model(name, "Pictures of a harbour, under the name of a real model")
            for name in (
                "black-forest-labs/flux-schnell",
                "black-forest-labs/flux-dev",
                "google/nano-banana",
                "fal-ai/flux",
            )
        ),
        Model(
            "black-forest-labs/flux-kontext-pro",
            "A picture of a picture",
            fields={**schemas.PICTURE_INPUT, "input_image": schemas.IMAGE},
            required=("prompt", "input_image"),
        ),
        Model("minimax/video-01", "A video of a harbour", "video", _VIDEO, schemas.VIDEO_INPUT),
        Model("fal-ai/minimax", "A video of a harbour", "video", _VIDEO, _IMAGE_TO_VIDEO),
        Model(
            "kwaivgi/kling-v2.1",
            "A video of a picture",
            "video",
            _VIDEO,
            {"start_image": schemas.IMAGE, **schemas.VIDEO_INPUT},
            ("start_image",),
        ),
        Model("standin/lost-answers", "Creates, and sends no response", defaults={"submit": "lost"}),
    )
}
_BY_VERSION: Final = {model.version: model for model in MODELS.values()}


def find_by_name(name: str) -> Model | None:
    """Return a model by its name, with or without a version or a sub-path; None for a name without a schema."""
    return MODELS.get("/".join(name.partition(":")[0].split("/")[:2]))


def find_by_version(version: str) -> Model | None:
    """Return a model by a version: an id, `owner/name` or `owner/name:id`."""
    return find_by_name(version) if "/" in version else _BY_VERSION.get(version)


def script_defaults(model: Model | None, input_: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """
    Return the defaults of the script's keys: those in the input, then those of the model.

    Args:
        files: names of the files in the folder of pictures; those of the model's kind are served.
    """
    defaults: dict[str, Any] = {}
    if model is not None:
        suitable = tuple(name for name in files if pictures.is_video(name) == (model.kind == "video"))
        generated = pictures.VIDEO_FORMATS if model.kind == "video" else ("webp",)
        defaults |= {"formats": suitable or generated, **model.defaults}
    count = next((input_[name] for name in _COUNT_FIELDS if _is_integer(input_.get(name))), None)
    if count is not None and (model is None or model.kind == "image"):
        defaults["outputs"] = min(max(count, 1), _MAX_OUTPUTS)
    if _is_integer(input_.get("seed")) and input_["seed"] >= 0:
        defaults["seed"] = input_["seed"] % 2**63
    format_ = {"jpg": "jpeg"}.get(str(input_.get("output_format")), input_.get("output_format"))
    if format_ in ("png", "jpeg", "webp"):
        defaults["formats"] = (format_,)
    return defaults | _size_defaults(input_)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _size_defaults(input_: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size in an input: width and height, fal's image_size, or OpenAI's size."""
    image_size, size = input_.get("image_size"), input_.get("size")
    fields = image_size if isinstance(image_size, dict) else input_
    width, height = fields.get("width"), fields.get("height")
    if isinstance(size, str):
        width, height = (int(side) if side.isascii() and side.isdigit() else 0 for side in size.partition("x")[::2])
    if not (_is_integer(width) and _is_integer(height) and 16 <= width <= 4096 and 16 <= height <= 4096):
        return {}
    return {"width_px": width, "height_px": height}
