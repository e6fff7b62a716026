"""Validates model inputs against the providers' JSON Schemas, and chooses the model of "auto" entries."""

import asyncio
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.model import FallbackEntry
from tasks.predictions import references
from web.api.job_schema import AUTO_MODEL, ParsedEntry
from web.http import validation
from web.http.problems import FieldError, Problem, unavailable
from web.http.validation import field_error
from web.services import model_cache
from web.services.context import AppContext

_SAMPLE_URL: Final = "https://files.example/input"  # in place of the signed URL that the provider will receive
_MAX_SCHEMA_LOOKUPS: Final = 3  # in sequence, for one entry
_IMAGE_FIELDS: Final = ("image", "images", "input_image", "start_image", "first_frame_image", "image_url")

_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,18}\.[0-9]{1,18}")

_MAX_SORTED_ERRORS: Final = 100  # a list may have an error in each of its items

# Patterns are left to the provider: they are written for another regex engine, and may backtrack without bound.
# References to other URLs are not fetched: the validator gets an empty registry.
_Validator: Final = extend(  # type: ignore[no-untyped-call]  # types-jsonschema leaves it untyped
    Draft202012Validator, {"pattern": None, "patternProperties": None}
)
_TYPE_NAMES: Final = {"object": "an object", "array": "a list", "string": "text", "integer": "an integer"}


async def check_inputs(
    ctx: AppContext, kind: str, entries: Sequence[ParsedEntry]
) -> tuple[tuple[FallbackEntry, ...], list[str]]:
    """Return entries with their models chosen, and why some are unchecked. Raises Problem: 422, 503 for "auto"."""
    tasks = (_check_entry(ctx, kind, parsed, f"chain[{index}]") for index, parsed in enumerate(entries))
    checked = await asyncio.gather(*tasks)
    errors = [error for _, errors, _ in checked for error in errors]
    validation.raise_errors(errors)
    return tuple(entry for entry, _, _ in checked), [unchecked for _, _, unchecked in checked if unchecked]


async def _check_entry(
    ctx: AppContext, kind: str, parsed: ParsedEntry, field: str
) -> tuple[FallbackEntry, list[FieldError], str | None]:
    """Return the entry with its model and numbers, what is wrong with it, and why it is unchecked."""
    entry = parsed.entry
    provider = ctx.providers[entry.provider]
    try:
        if entry.model == AUTO_MODEL:
            entry = await _choose_model(ctx, kind, parsed, field)
        schema = await ctx.model_cache.get_schema(provider, entry.model)
        if schema is None:
            return entry, [], f"{field}: {entry.provider} publishes no schema of {entry.model}"
        entry = dataclasses.replace(entry, input=convert_numbers(entry.input, schema))
        urls = {reference.label: _SAMPLE_URL for reference in parsed.references}
        sample = references.substitute_urls(dict(entry.input), urls)
        # In a thread: validation may be slow, and the event loop also receives webhooks.
        errors = await asyncio.to_thread(find_schema_errors, sample, schema, f"{field}.input")
        return entry, errors, None
    except ProviderUnavailable as error:
        return entry, [], f"{field}: {model_cache.describe_outage(entry.provider, error)}"
    except UnusableSchema as error:
        return entry, [], f"{field}: the schema of {entry.model} is unusable: {error}"[:500]
    except ProviderRefused as error:
        if error.facts.get("status") not in (None, 404, 410):  # e.g. our token: other entries may still yield files
            return entry, [], f"{field}: {error}"
        return entry, [field_error(f"{field}.model", str(error))], None


async def _choose_model(ctx: AppContext, kind: str, parsed: ParsedEntry, field: str) -> FallbackEntry:
    """Return the entry with the provider's first model of the kind that accepts an image if the input has one."""
    entry = parsed.entry
    try:
        models = await ctx.model_cache.get_models(ctx.providers[entry.provider], kind)
    except ProviderUnavailable as error:
        raise unavailable(f"{field}.model: the models of {entry.provider} are unavailable: name a model") from error
    images = [value for name in _IMAGE_FIELDS if isinstance(value := entry.input.get(name), str | list) and value]
    has_image = bool(parsed.references or images)
    accepting: list[Mapping[str, Any]] = [model for model in models if "image" in (model.get("accepts") or ())]
    candidates = accepting if has_image else [model for model in models if model not in accepting]
    chosen = next(iter(candidates), None)
    if chosen is None and not has_image:
        chosen = await _find_image_optional_model(ctx, entry.provider, accepting)
    if chosen is not None:
        return dataclasses.replace(entry, model=str(chosen["name"]), input=_rename_image_field(chosen, entry.input))
    required = f"{kind} model that accepts {'an' if has_image else 'no'} image"
    errors = [{"field": f"{field}.model", "message": f"the provider lists no {required}: name a model"}]
    raise Problem(422, f"{field}.model: {entry.provider} lists no {required}", errors=errors)


async def _find_image_optional_model(
    ctx: AppContext, provider: str, models: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    for model in models[:_MAX_SCHEMA_LOOKUPS]:
        schema = await ctx.model_cache.get_schema(ctx.providers[provider], str(model["name"]))
        if schema is not None and model.get("picture_field") not in schema.get("required", ()):
            return model
    return None


def _rename_image_field(model: Mapping[str, Any], model_input: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input with `image` under the model's own field name, which an "auto" entry cannot know."""
    image_field = model.get("picture_field")
    renamed = dict(model_input)
    if isinstance(image_field, str) and image_field not in renamed and "image" in renamed:
        renamed[image_field] = renamed.pop("image")
    return renamed


def convert_numbers(value: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return an input with text converted to a number where the schema has a number and no text, as forms send it."""
    properties = schema.get("properties")
    rules = properties if isinstance(properties, Mapping) else {}
    return {name: _convert_number(item, rules.get(name)) for name, item in value.items()}


def _convert_number(value: Any, rule: Any) -> Any:
    types = rule.get("type") if isinstance(rule, Mapping) else None
    accepted = {types} if isinstance(types, str) else {name for name in types or () if isinstance(name, str)}
    if not isinstance(value, str) or "string" in accepted or not accepted & {"integer", "number"}:
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if "number" in accepted and _DECIMAL.fullmatch(value) else value


class UnusableSchema(ValueError):
    """The provider's schema is not a JSON Schema that the validator can use."""


def find_schema_errors(value: Mapping[str, Any], schema: Mapping[str, Any], field: str) -> list[FieldError]:
    """Return the first MAX_ERRORS errors of an input. Raises UnusableSchema: the input cannot be checked."""
    validator = _build_validator(json.dumps(schema, sort_keys=True))
    try:
        return list(itertools.islice(_describe_errors(validator, value, field), validation.MAX_ERRORS))
    except (Unresolvable, RecursionError, TypeError, ValueError, ArithmeticError) as error:
        raise UnusableSchema(f"{type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=64)
def _build_validator(text: str) -> Any:
    schema = json.loads(text)
    try:
        _Validator.check_schema(schema)
    except SchemaError as error:
        raise UnusableSchema(error.message) from error
    return _Validator(schema, registry=Registry())


def _describe_errors(validator: Any, value: Mapping[str, Any], field: str) -> Iterator[FieldError]:
    errors = itertools.islice(validator.iter_errors(dict(value)), _MAX_SORTED_ERRORS)
    for error in sorted(errors, key=lambda error: list(map(str, error.absolute_path))):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield from _describe_error(error, field + path)


def _describe_error(error: ValidationError, field: str) -> Iterator[FieldError]:
    """Yield the messages of one error. They repeat names and the schema's rule, not the values that were sent."""
    rule, expected = error.validator, error.validator_value
    if rule == "required" and isinstance(expected, list) and isinstance(error.instance, dict):
        for name in expected:
            if name not in error.instance:
                yield field_error(f"{field}.{name}", "is required by the model")
    elif rule == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in error.instance:
            if name not in known:
                yield field_error(f"{field}.{name}", f"is not an input of the model: valid inputs: {', '.join(known)}")
    else:
        yield field_error(field, _describe_rule(str(rule), expected))


def _describe_rule(rule: str, expected: Any) -> str:
    shown = json.dumps(expected, ensure_ascii=False, default=str)
    types = map(str, expected if isinstance(expected, list) else [expected])
    messages = {
        "type": f"is not {' or '.join(_TYPE_NAMES.get(name, f'a {name}') for name in types)}",
        "enum": f"is not one of {shown}",
        "const": f"is not {shown}",
        "minimum": f"is less than {shown}",
        "maximum": f"is more than {shown}",
        "exclusiveMinimum": f"is not more than {shown}",
        "exclusiveMaximum": f"is not less than {shown}",
        "minLength": f"has fewer than {shown} characters",
        "maxLength": f"has more than {shown} characters",
        "minItems": f"has fewer than {shown} items",
        "maxItems": f"has more than {shown} items",
        "multipleOf": f"is not a multiple of {shown}",
    }
    return messages.get(rule, f"violates the model's schema ({rule})")
