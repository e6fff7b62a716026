"""
The models that the stand-in offers, each with the schema of its input, in the form that Replicate publishes.

    standin/pictures            healthy: prompt, num_outputs, width, height, aspect_ratio, seed, image, output_format
    standin/text-to-video       healthy, one MP4: prompt, duration, seed
    standin/image-to-video      healthy, one MP4: image, prompt, duration, seed
    standin/slow                like pictures, after 20 s
    standin/failing             like pictures, but every run fails
    standin/busy                like pictures; of two orders with the same input the first is answered 429
    standin/no-credit           like pictures; every order is refused for want of money
    standin/broken              like pictures; every order is answered 500 and nothing is made
    standin/lost-answers        like pictures; every order is made, and the connection closed without an answer

At fal and OpenAI the same names have the same nature (fal's applications have no schema here). A model of any other
name takes any input and is healthy.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from simulation.provider import pictures, schemas

_CREATED: Final = "2026-01-01T00:00:00.000000Z"
_COUNTS: Final = ("num_outputs", "num_images", "n")
_MOST_OUTPUTS: Final = 10


@dataclass(frozen=True, slots=True)
class Model:
    """
    One model.

    Args:
        kind: image or video.
        nature: what it does where a script says nothing, in the words of `faults`.
        fields, required: of its input.
    """

    name: str
    description: str
    kind: str = "image"
    nature: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, dict[str, Any]] = field(default_factory=lambda: schemas.PICTURE_INPUT)
    required: tuple[str, ...] = ("prompt",)

    @property
    def version(self) -> str:
        """Return the id of its latest version."""
        return hashlib.sha256(self.name.encode()).hexdigest()


_VIDEO: Final = {"shape": "string", "outputs": 1, "duration_s": 1.0}
MODELS: Final[Mapping[str, Model]] = {
    model.name: model
    for model in (
        Model("standin/pictures", "Pictures of a harbour"),
        Model("standin/text-to-video", "A video of a harbour", "video", _VIDEO, schemas.VIDEO_INPUT),
        Model(
            "standin/image-to-video",
            "A video that starts from a picture",
            "video",
            _VIDEO,
            {"image": schemas.IMAGE, **schemas.VIDEO_INPUT},
            ("image",),
        ),
        Model("standin/slow", "Pictures, after 20 s", nature={"duration_s": 20.0}),
        Model("standin/failing", "Every run fails", nature={"status": "failed"}),
        Model("standin/busy", "Answers 429 first", nature={"submit": "busy", "submit_times": 1}),
        Model("standin/no-credit", "Refuses for want of money", nature={"submit": "no_credit"}),
        Model("standin/broken", "Answers 500", nature={"submit": "500_before"}),
        Model("standin/lost-answers", "Takes orders and says nothing", nature={"submit": "lost"}),
    )
}
_BY_VERSION: Final = {model.version: model for model in MODELS.values()}


def named(name: str) -> Model | None:
    """Return the model of a name, also with a version or a sub-path behind it; None for those that take anything."""
    return MODELS.get("/".join(name.partition(":")[0].split("/")[:2]))


def of_version(version: str) -> Model | None:
    """Return the model of a version, written as its id, `owner/name` or `owner/name:id`."""
    return named(version) if "/" in version else _BY_VERSION.get(version)


def nature(model: Model | None, asked: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """
    Return what holds where a script says nothing: what the input asks for, then the model's own nature.

    Args:
        files: names of the files in the folder of pictures; those of the model's kind are served.
    """
    found: dict[str, Any] = {}
    if model is not None:
        fitting = tuple(name for name in files if pictures.is_video(name) == (model.kind == "video"))
        made = pictures.VIDEOS if model.kind == "video" else ("webp",)
        found |= {"formats": fitting or made, **model.nature}
    count = next((asked[name] for name in _COUNTS if _is_whole(asked.get(name))), None)
    if count is not None and (model is None or model.kind == "image"):
        found["outputs"] = min(max(count, 1), _MOST_OUTPUTS)
    if _is_whole(asked.get("seed")) and asked["seed"] >= 0:
        found["seed"] = asked["seed"] % 2**63
    return found | _size(asked) | _format(asked)


def show(model: Model) -> dict[str, Any]:
    """Return the model as Replicate's API shows it."""
    owner, _, name = model.name.partition("/")
    return {
        "url": f"https://replicate.com/{model.name}",
        "owner": owner,
        "name": name,
        "description": model.description,
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": show_version(model),
    }


def show_version(model: Model) -> dict[str, Any]:
    """Return the model's one version as Replicate's API shows it."""
    return {
        "id": model.version,
        "created_at": _CREATED,
        "cog_version": "0.16.0",
        "openapi_schema": schemas.openapi(model.fields, model.required, is_list=model.kind == "image"),
    }


def collections() -> dict[str, list[Model]]:
    """Return the models by what they make of what, as Replicate's collections are called."""
    return {
        "text-to-image": [m for m in MODELS.values() if m.kind == "image"],
        "image-to-image": [m for m in MODELS.values() if m.kind == "image" and "image" in m.fields],
        "text-to-video": [m for m in MODELS.values() if m.kind == "video" and m.required == ("prompt",)],
        "image-to-video": [m for m in MODELS.values() if m.kind == "video" and "image" in m.fields],
    }


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size that an input asks for: width and height, or fal's image_size, or OpenAI's size."""
    box, size = asked.get("image_size"), asked.get("size")
    sides = box if isinstance(box, dict) else asked
    width, height = sides.get("width"), sides.get("height")
    if isinstance(size, str):
        width, height = (int(side) if side.isascii() and side.isdigit() else 0 for side in size.partition("x")[::2])
    if not (_is_whole(width) and _is_whole(height) and 16 <= width <= 4096 and 16 <= height <= 4096):
        return {}
    return {"width_px": width, "height_px": height}


def _format(asked: Mapping[str, Any]) -> dict[str, Any]:
    known = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
    kind = known.get(str(asked.get("output_format")))
    return {"formats": (kind,)} if kind else {}
