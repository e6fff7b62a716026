"""Input schemas of the models in the format that Replicate publishes, and their validation."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jsonschema

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
