"""What the models take as input: in the form that Replicate publishes, and checked as Replicate checks it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Fields = Mapping[str, dict[str, Any]]  # name to JSON Schema

_MOST_OUTPUTS: Final = 10
_REFS: Final = "#/components/schemas/"


def _text(title: str, description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "title": title, "description": description, **more}


def _whole(title: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "title": title, "minimum": low, "maximum": high, **more}


def _one_of(name: str, **more: Any) -> dict[str, Any]:
    return {"allOf": [{"$ref": f"{_REFS}{name}"}], **more}


_ENUMS: Final[Mapping[str, dict[str, Any]]] = {
    "aspect_ratio": {
        "type": "string",
        "title": "aspect_ratio",
        "enum": ["custom", "1:1", "16:9", "9:16", "4:3", "3:4"],
        "description": "An enumeration.",
    },
    "output_format": {
        "type": "string",
        "title": "output_format",
        "enum": ["webp", "jpg", "png"],
        "description": "An enumeration.",
    },
}
_PROMPT: Final = _text("Prompt", "What to show", minLength=1, maxLength=4000)
IMAGE: Final = _text("Image", "A picture to start from", format="uri")
_SEED: Final = {
    "type": "integer",
    "title": "Seed",
    "nullable": True,
    "description": "The same seed gives the same pictures",
}
_SCRIPT: Final = {"type": "object", "title": "Standin", "description": "What the stand-in is to do, see faults.py"}
PICTURE_INPUT: Final = {
    "prompt": _PROMPT,
    "num_outputs": _whole("Num Outputs", 1, _MOST_OUTPUTS, default=1),
    "width": _whole("Width", 64, 2048, description="In pixels, with aspect_ratio custom"),
    "height": _whole("Height", 64, 2048, description="In pixels, with aspect_ratio custom"),
    "aspect_ratio": _one_of("aspect_ratio", default="custom"),
    "seed": _SEED,
    "image": IMAGE,
    "output_format": _one_of("output_format", default="webp"),
    "standin": _SCRIPT,
}
VIDEO_INPUT: Final = {
    "prompt": _PROMPT,
    "duration": {"type": "integer", "title": "Duration", "enum": [5, 10], "default": 5},
    "seed": _SEED,
    "standin": _SCRIPT,
}


def problems(fields: Fields, required: Sequence[str], asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (field, what is wrong) for each thing in an input that its schema does not allow."""
    missing = [("", f"{name} is required") for name in required if name not in asked]
    known = ((name, value) for name, value in asked.items() if name in fields)
    return missing + [(name, told) for name, value in known for told in _wrong(_resolved(fields[name]), value)]


def openapi(fields: Fields, required: Sequence[str], *, is_list: bool) -> dict[str, Any]:
    """Return the description that Replicate publishes of a model whose output is a list of files, or one file."""
    uri = {"type": "string", "format": "uri"}
    output = {"type": "array", "items": uri, "title": "Output"} if is_list else {**uri, "title": "Output"}
    shown = {name: {**told, "x-order": place} for place, (name, told) in enumerate(fields.items())}
    schema = {"type": "object", "title": "Input", "required": list(required), "properties": shown}
    used = {name: enum for name, enum in _ENUMS.items() if name in fields}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {},
        "components": {"schemas": {"Input": schema, "Output": output, **used}},
    }


def _resolved(told: dict[str, Any]) -> dict[str, Any]:
    return _ENUMS[told["allOf"][0]["$ref"].removeprefix(_REFS)] if "allOf" in told else told


def _wrong(told: Mapping[str, Any], value: Any) -> Iterator[str]:
    if value is None and told.get("nullable"):
        return
    kinds: dict[str, type[Any]] = {"string": str, "integer": int, "object": dict}
    if not isinstance(value, kinds[told["type"]]) or isinstance(value, bool):
        yield f"Invalid type. Expected: {told['type']}, given: {_kind(value)}"
        return
    if value not in told.get("enum", [value]):
        yield f"must be one of the following: {', '.join(map(repr, told['enum']))}"
    if isinstance(value, int) and value < told.get("minimum", value):
        yield f"Must be greater than or equal to {told['minimum']}"
    if isinstance(value, int) and value > told.get("maximum", value):
        yield f"Must be less than or equal to {told['maximum']}"
    if isinstance(value, str) and not told.get("minLength", 0) <= len(value) <= told.get("maxLength", len(value)):
        yield f"String length must be from {told.get('minLength', 0)} to {told['maxLength']}"
    if told.get("format") == "uri" and not value.startswith(("http://", "https://", "data:")):
        yield "Does not match format 'uri'"


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
