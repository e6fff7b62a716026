"""A model's input as JSON Schema out of its OpenAPI description, and what that says of the model; pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from moorage.errors import MalformedPayload

_PREFIX: Final = "#/components/schemas/"
_MAX_DEPTH: Final = 40
_MAX_NODES: Final = 20_000  # a few references to each other could else unfold without end
_PICTURE_WORDS: Final = frozenset({"image", "images", "img", "photo", "picture", "frame"})
_VIDEO_WORDS: Final = frozenset({"duration", "fps", "frame", "frames", "video"})


def extract_input_schema(document: object) -> dict[str, Any]:
    """
    Return the schema `components.schemas.Input` with every reference inside the document put in its place.

    OpenAPI 3.0's `nullable` becomes a type of JSON Schema's. A reference that leads to itself becomes "anything".

    Raises:
        Unreadable: there is no such schema, a reference leads nowhere, or it unfolds to more than 20,000 parts.
    """
    components = document.get("components") if isinstance(document, dict) else None
    schemas = components.get("schemas") if isinstance(components, dict) else None
    wanted = schemas.get("Input") if isinstance(schemas, dict) else None
    if not isinstance(schemas, dict) or not isinstance(wanted, dict):
        raise MalformedPayload("it has no components.schemas.Input")
    resolved = _Resolver(schemas).resolve(wanted, ())
    return dict(resolved)


def find_image_field(schema: Mapping[str, Any]) -> str | None:
    """Return the field that takes the address of a picture, a required one first; None where there is none."""
    names = [name for name, field in _fields(schema) if _words(name) & _PICTURE_WORDS and _takes_url(field)]
    required = schema.get("required")
    needed = [name for name in names if isinstance(required, list) and name in required]
    return next(iter((*needed, *names)), None)


def is_video_schema(schema: Mapping[str, Any]) -> bool:
    """Return whether a model's input speaks of time (duration, frames), which those of pictures never do."""
    return any(_words(name) & _VIDEO_WORDS for name, _ in _fields(schema))


class _Resolver:
    """Puts references in their place, and counts what that unfolds to."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._nodes = 0

    def resolve(self, value: Any, inside: tuple[str, ...], depth: int = 0) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise MalformedPayload("its schema unfolds to more than can be read")
        if isinstance(value, list):
            return [self.resolve(item, inside, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return _with_null({key: self.resolve(item, inside, depth + 1) for key, item in value.items()})
        beside = {key: item for key, item in value.items() if key != "$ref"}
        return {**self._target(reference, inside, depth), **self.resolve(beside, inside, depth + 1)}

    def _target(self, reference: str, inside: tuple[str, ...], depth: int) -> dict[str, Any]:
        name = reference.removeprefix(_PREFIX)
        target = self._schemas.get(name) if reference.startswith(_PREFIX) else None
        if not isinstance(target, dict):
            raise MalformedPayload("a reference in its schema leads nowhere")
        if name in inside:
            return {}
        return dict(self.resolve(target, (*inside, name), depth + 1))


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("nullable") is not True:
        return schema
    rest = {key: value for key, value in schema.items() if key != "nullable"}
    if isinstance(rest.get("type"), str):
        rest["type"] = [rest["type"], "null"]
    if isinstance(rest.get("enum"), list) and None not in rest["enum"]:
        rest["enum"] = [*rest["enum"], None]
    return rest


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    properties = schema.get("properties")
    for name, field in properties.items() if isinstance(properties, dict) else ():
        if isinstance(field, dict):
            yield name, field


def _words(name: str) -> frozenset[str]:
    return frozenset(name.lower().replace("-", "_").split("_"))


def _takes_url(field: Mapping[str, Any]) -> bool:
    items = field.get("items")
    return field.get("format") == "uri" or (isinstance(items, dict) and items.get("format") == "uri")
