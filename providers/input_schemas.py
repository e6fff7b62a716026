"""A model's input or output schema, extracted from its OpenAPI description; pure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jmespath

from moorage.errors import MalformedPayload
from moorage.text import is_storable

_REQUEST_BODY: Final = 'post.requestBody.content."application/json".schema'
_RESPONSE_BODY: Final = 'get.responses."200".content."application/json".schema'
_PREFIX: Final = "#/components/schemas/"
_MAX_DEPTH: Final = 40
_MAX_NODES: Final = 20_000  # limits mutual references
_IMAGE_WORDS: Final = frozenset({"image", "images", "img", "photo", "picture", "frame"})
_VIDEO_WORDS: Final = frozenset({"duration", "fps", "frame", "frames", "video"})


def extract_schema(document: object, name: str = "Input") -> dict[str, Any]:
    """
    Return the schema `components.schemas.{name}` with all internal references resolved; raises MalformedPayload.

    OpenAPI 3.0's `nullable` is converted to a JSON Schema type. A recursive reference becomes "anything".
    """
    components = document.get("components") if isinstance(document, dict) else None
    schemas = components.get("schemas") if isinstance(components, dict) else None
    schema = schemas.get(name) if isinstance(schemas, dict) else None
    if not isinstance(schemas, dict) or not isinstance(schema, dict):
        raise MalformedPayload(f"components.schemas.{name} is missing")
    resolved = _Resolver(schemas).resolve(schema, ())
    return dict(resolved)


def find_body_schema(document: object, path: str, *, is_request: bool) -> dict[str, Any] | None:
    """
    Return the JSON Schema of a body in an OpenAPI document, with its references resolved; raises MalformedPayload.

    It is that of the POST request to the first path that the pattern matches, or of the 200 response to its GET.
    """
    paths, schemas = jmespath.search("[paths, components.schemas]", document) or (None, None)
    for name, item in paths.items() if isinstance(paths, dict) else ():
        schema = jmespath.search(_REQUEST_BODY if is_request else _RESPONSE_BODY, item)
        if re.fullmatch(path, name) and isinstance(schema, dict):
            return dict(_Resolver(schemas if isinstance(schemas, dict) else {}).resolve(schema, ()))
    return None


def find_image_field(schema: Mapping[str, Any]) -> str | None:
    """Return the input field for the URL of an image, preferably a required one; None without any."""
    fields = [(name, field) for name, field in _fields(schema) if is_storable(name)]
    names = [name for name, field in fields if _words(name) & _IMAGE_WORDS and _takes_url(field)]
    required = schema.get("required")
    required_names = [name for name in names if isinstance(required, list) and name in required]
    return next(iter((*required_names, *names)), None)


def is_video_schema(schema: Mapping[str, Any]) -> bool:
    """Return True if the input has a field for time (duration, frames), which image models never have."""
    return any(_words(name) & _VIDEO_WORDS for name, _ in _fields(schema))


class _Resolver:
    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._nodes = 0

    def resolve(self, value: Any, ancestors: tuple[str, ...], depth: int = 0) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise MalformedPayload("the schema unfolds to more than 20,000 parts")
        if isinstance(value, list):
            return [self.resolve(item, ancestors, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return _with_null({key: self.resolve(item, ancestors, depth + 1) for key, item in value.items()})
        siblings = {key: item for key, item in value.items() if key != "$ref"}
        return {**self._target(reference, ancestors, depth), **self.resolve(siblings, ancestors, depth + 1)}

    def _target(self, reference: str, ancestors: tuple[str, ...], depth: int) -> dict[str, Any]:
        name = reference.removeprefix(_PREFIX)
        target = self._schemas.get(name) if reference.startswith(_PREFIX) else None
        if not isinstance(target, dict):
            raise MalformedPayload("a reference in the schema has no target")
        if name in ancestors:
            return {}
        return dict(self.resolve(target, (*ancestors, name), depth + 1))


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
