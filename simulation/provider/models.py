"""
The models of the stand-in, each with the schema of its input; docs/reference/stand-in.md lists their behaviour.

The names have the same behaviour at fal and OpenAI, without a schema. A model with any other name accepts any input and
is healthy.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import jsonschema

from simulation.provider import pictures

Fields = Mapping[str, dict[str, Any]]  # name to JSON Schema

_REFS: Final = "#/components/schemas/"


def _enum(title: str, *values: str) -> dict[str, Any]:
    return {"type": "string", "title": title, "enum": list(values), "description": "An enumeration."}


def _enum_ref(name: str, default: str) -> dict[str, Any]:
    return {"allOf": [{"$ref": f"{_REFS}{name}"}], "default": default}


def _integer(title: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "title": title, "minimum": low, "maximum": high, **more}


_ENUMS: Final[Mapping[str, dict[str, Any]]] = {
    "aspect_ratio": _enum("aspect_ratio", "custom", "1:1", "16:9", "9:16", "4:3", "3:4"),
    "output_format": _enum("output_format", "webp", "jpg", "png"),
}
_PROMPT: Final = {
    "type": "string", "title": "Prompt", "description": "What to show", "minLength": 1, "maxLength": 4000,
}  # fmt: skip
IMAGE: Final = {"type": "string", "title": "Image", "description": "A picture to start from", "format": "uri"}
_SEED: Final = {
    "type": "integer", "title": "Seed", "nullable": True, "description": "The same seed gives the same pictures",
}  # fmt: skip
_SCRIPT: Final = {"type": "object", "title": "Standin", "description": "Script of the stand-in, see script.py"}
PICTURE_INPUT: Final[dict[str, dict[str, Any]]] = {
    "prompt": _PROMPT,
    "num_outputs": _integer("Num Outputs", 1, 10, default=1),
    "width": _integer("Width", 64, 2048, description="In pixels, with aspect_ratio custom"),
    "height": _integer("Height", 64, 2048, description="In pixels, with aspect_ratio custom"),
    "aspect_ratio": _enum_ref("aspect_ratio", default="custom"),
    "seed": _SEED,
    "image": IMAGE,
    "output_format": _enum_ref("output_format", default="webp"),
    "standin": _SCRIPT,
}
VIDEO_INPUT: Final[dict[str, dict[str, Any]]] = {
    "prompt": _PROMPT,
    "duration": {"type": "integer", "title": "Duration", "enum": [5, 10], "default": 5},
    "seed": _SEED,
    "standin": _SCRIPT,
}


def find_violations(fields: Fields, required: Sequence[str], input_: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (field, message) for each violation of the schema; the field is "" if one is missing."""
    known = {name: _resolve(schema) for name, schema in fields.items()}
    schema = {"type": "object", "required": list(required), "properties": known}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(input_)
    return [("".join(map(str, error.path)), error.message) for error in errors]


def openapi(fields: Fields, required: Sequence[str], *, is_list: bool) -> dict[str, Any]:
    """Return the OpenAPI document of a model. `is_list`: its output is a list of files, not one file."""
    uri = {"type": "string", "format": "uri"}
    output = {"type": "array", "items": uri, "title": "Output"} if is_list else {**uri, "title": "Output"}
    properties = {name: {**schema, "x-order": order} for order, (name, schema) in enumerate(fields.items())}
    input_schema = {"type": "object", "title": "Input", "required": list(required), "properties": properties}
    enums = {name: enum for name, enum in _ENUMS.items() if name in fields}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {},
        "components": {"schemas": {"Input": input_schema, "Output": output, **enums}},
    }


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of OpenAPI 3.0 as one of JSON Schema."""
    if "allOf" in schema:
        return _ENUMS[schema["allOf"][0]["$ref"].removeprefix(_REFS)]
    nullable = {"type": [schema["type"], "null"]} if schema.get("nullable") else {}
    return {**schema, **nullable, **({"pattern": "^(https?://|data:)"} if schema.get("format") == "uri" else {})}


_COUNT_FIELDS: Final = ("num_outputs", "num_images", "n")
_MAX_OUTPUTS: Final = 10


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    description: str
    kind: str = "image"  # or video
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the script's keys
    fields: Mapping[str, dict[str, Any]] = field(default_factory=lambda: PICTURE_INPUT)
    required: tuple[str, ...] = ("prompt",)

    @property
    def version(self) -> str:
        """Return the id of its only version."""
        return hashlib.sha256(self.name.encode()).hexdigest()


_VIDEO: Final = {"shape": "string", "outputs": 1, "duration_s": 1.0}
_IMAGE_TO_VIDEO: Final = {"image": IMAGE, **VIDEO_INPUT}
_START_TO_VIDEO: Final = {"start_image": IMAGE, **VIDEO_INPUT}
_EDIT: Final = {**PICTURE_INPUT, "input_image": IMAGE}
_PICTURE_MODELS: Final = (
    "black-forest-labs/flux-schnell", "black-forest-labs/flux-dev", "google/nano-banana", "fal-ai/flux",
)  # fmt: skip
MODELS: Final[Mapping[str, Model]] = {
    model.name: model
    for model in (
        Model("standin/pictures", "Pictures of a harbour"),
        Model("standin/text-to-video", "A video of a harbour", "video", _VIDEO, VIDEO_INPUT),
        Model("standin/image-to-video", "A video of a picture", "video", _VIDEO, _IMAGE_TO_VIDEO, ("image",)),
        Model("standin/slow", "Pictures, after 20 s", defaults={"duration_s": 20.0}),
        Model("standin/failing", "Every prediction fails", defaults={"status": "failed"}),
        Model("standin/busy", "Returns 429 first", defaults={"submit": "busy", "submit_times": 1}),
        Model("standin/no-credit", "Rejects for lack of credit", defaults={"submit": "no_credit"}),
        Model("standin/broken", "Returns 500", defaults={"submit": "500_before"}),
        *(Model(name, "Pictures of a harbour, under the name of a real model") for name in _PICTURE_MODELS),
        Model(
            "black-forest-labs/flux-kontext-pro",
            "A picture of a picture",
            fields=_EDIT,
            required=("prompt", "input_image"),
        ),
        Model("minimax/video-01", "A video of a harbour", "video", _VIDEO, VIDEO_INPUT),
        Model("fal-ai/minimax", "A video of a harbour", "video", _VIDEO, _IMAGE_TO_VIDEO),
        Model("kwaivgi/kling-v2.1", "A video of a picture", "video", _VIDEO, _START_TO_VIDEO, ("start_image",)),
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
