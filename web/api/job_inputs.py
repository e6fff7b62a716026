"""An order against what its providers say: the model is chosen where it is left open, the input is checked."""

import asyncio
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.model import FallbackEntry, JobRequest
from tasks.predictions import references
from web.api import job_schema
from web.http import validation
from web.http.problems import Problem, unavailable
from web.http.validation import field_error
from web.services import model_cache
from web.services.context import AppContext

_SAMPLE_URL: Final = "https://files.example/input"  # stands for the signed one that the provider will be given
_MAX_SCHEMA_LOOKUPS: Final = 3  # one after the other, in one request
_IMAGE_FIELDS: Final = ("image", "images", "input_image", "start_image", "first_frame_image", "image_url")

MAX_ERRORS: Final = 20
_MAX_SORTED_ERRORS: Final = 100  # before they are put in order: a list may be wrong in each of its values

# Patterns are left to the provider: they are written for another engine, and one could run for ever. Addresses are not
# followed: with a registry of its own the library fetches none.
_Validator: Final = extend(  # type: ignore[no-untyped-call]  # types-jsonschema leaves it untyped
    Draft202012Validator, {"pattern": None, "patternProperties": None}
)
_TYPE_NAMES: Final = {"object": "an object", "array": "a list", "string": "text", "integer": "an integer"}


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """An order whose models are all named, and why some of its entries could not be checked."""

    wish: JobRequest
    unchecked: list[str]


@dataclass(frozen=True, slots=True)
class _CheckedEntry:
    entry: FallbackEntry
    errors: list[dict[str, str]]
    unchecked: str | None


async def check_inputs(at: AppContext, wish: JobRequest) -> CheckedJob:
    """
    Return the order as it is to be stored. A provider that is away is no reason to refuse it.

    Raises:
        Problem: 422 for an input that a model does not take, and for a model that does not exist; 503 where a model is
            to be chosen and its provider is away.
    """
    judged = await asyncio.gather(*(_check_entry(at, wish, n) for n in range(len(wish.fallback_chain))))
    errors = [error for one in judged for error in one.errors]
    if errors:
        raise validation.invalid_fields(errors)
    chain = tuple(one.entry for one in judged)
    return CheckedJob(
        dataclasses.replace(wish, fallback_chain=chain), [one.unchecked for one in judged if one.unchecked]
    )


async def _check_entry(at: AppContext, wish: JobRequest, n: int) -> _CheckedEntry:
    entry, place = wish.fallback_chain[n], f"chain[{n}]"
    provider = at.providers[entry.provider]
    try:
        if entry.model == job_schema.AUTO_MODEL:
            entry = await _choose_model(at, wish, entry, place)
        schema = await at.model_cache.get_schema(provider, entry.model)
        if schema is None:
            return _CheckedEntry(entry, [], f"{place}: {entry.provider} offers no schema of {entry.model}")
        named = references.find_references(dict(entry.input))
        filled = references.substitute_urls(dict(entry.input), {found.label: _SAMPLE_URL for found in named})
        # In a thread: what a schema asks may take long, and webhooks are taken beside it.
        wrongs = await asyncio.to_thread(find_schema_errors, filled, schema, f"{place}.input")
        return _CheckedEntry(entry, wrongs, None)
    except ProviderUnavailable as error:
        return _CheckedEntry(entry, [], f"{place}: {model_cache.describe_outage(entry.provider, error)}")
    except UnusableSchema as error:
        return _CheckedEntry(entry, [], f"{place}: the schema of {entry.model} cannot be used: {error}"[:500])
    except ProviderRefused as error:
        if error.facts.get("status") not in (None, 404, 410):  # our token, say: other entries may still bring files
            return _CheckedEntry(entry, [], f"{place}: {error}")
        return _CheckedEntry(entry, [field_error(f"{place}.model", str(error))], None)


async def _choose_model(at: AppContext, wish: JobRequest, entry: FallbackEntry, place: str) -> FallbackEntry:
    """Return the entry with the provider's first model of the kind that accepts a picture where the input has one."""
    try:
        models = await at.model_cache.get_models(at.providers[entry.provider], wish.kind)
    except ProviderUnavailable as error:
        raise unavailable(f"{place}.model: {entry.provider} cannot be asked for its models now: name one") from error
    has_picture = _has_image(entry.input)
    takes: list[Mapping[str, Any]] = [model for model in models if "image" in (model.get("accepts") or ())]
    fitting = takes if has_picture else [model for model in models if model not in takes]
    chosen = next(iter(fitting), None)
    if chosen is None and not has_picture:
        chosen = await _find_image_optional_model(at, entry.provider, takes)
    if chosen is not None:
        return dataclasses.replace(entry, model=str(chosen["name"]), input=_rename_image_field(chosen, entry.input))
    wanted = f"{wish.kind} model that takes {'a' if has_picture else 'no'} picture"
    raise Problem(422, f"{place}.model: {entry.provider} names no {wanted}", errors=_unnamed(place, wanted))


async def _find_image_optional_model(
    at: AppContext, provider: str, models: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Return the first model that takes a picture and does not insist on one."""
    for model in models[:_MAX_SCHEMA_LOOKUPS]:
        schema = await at.model_cache.get_schema(at.providers[provider], str(model["name"]))
        if schema is not None and model.get("picture_field") not in schema.get("required", ()):
            return model
    return None


def _rename_image_field(model: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return an input whose picture stands under the model's own name for it: whoever wrote `image` did not know it."""
    theirs = model.get("picture_field")
    made = dict(given)
    if isinstance(theirs, str) and theirs not in made and "image" in made:
        made[theirs] = made.pop("image")
    return made


def _unnamed(place: str, wanted: str) -> list[dict[str, str]]:
    return [{"field": f"{place}.model", "message": f"the provider names no {wanted}: write one"}]


def _has_image(value: Mapping[str, Any]) -> bool:
    if references.find_references(dict(value)):
        return True
    return any(isinstance(value.get(name), str | list) and value.get(name) for name in _IMAGE_FIELDS)


class UnusableSchema(ValueError):
    """What the provider offers is no schema that can be used."""


def find_schema_errors(value: Mapping[str, Any], schema: Mapping[str, Any], field: str) -> list[dict[str, str]]:
    """
    Return what a model would not take of an input, each with its field; the first 20.

    Raises:
        BadSchema: nothing can be said.
    """
    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        return [told for _, told in zip(range(MAX_ERRORS), _describe_errors(validator, value, field), strict=False)]
    except (Unresolvable, RecursionError, TypeError, ValueError) as error:
        raise UnusableSchema(f"{type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=64)
def _validator(text: str) -> Any:
    schema = json.loads(text)
    try:
        _Validator.check_schema(schema)
    except SchemaError as error:
        raise UnusableSchema(error.message) from error
    return _Validator(schema, registry=Registry())


def _describe_errors(validator: Any, value: Mapping[str, Any], field: str) -> Iterator[dict[str, str]]:
    some = itertools.islice(validator.iter_errors(dict(value)), _MAX_SORTED_ERRORS)
    for error in sorted(some, key=lambda found: list(map(str, found.absolute_path))):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield from _describe_error(error, field + place)


def _describe_error(error: ValidationError, field: str) -> Iterator[dict[str, str]]:
    """Yield what one error says; of what was sent only names are repeated, and what would be right."""
    rule, wants = error.validator, error.validator_value
    if rule == "required" and isinstance(wants, list) and isinstance(error.instance, dict):
        for name in wants:
            if name not in error.instance:
                yield validation.field_error(f"{field}.{name}", "is missing: the model needs it")
    elif rule == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in error.instance:
            if name not in known:
                yield validation.field_error(
                    f"{field}.{name}", f"is no input of the model: it takes {', '.join(known)}"
                )
    else:
        yield validation.field_error(field, _describe_rule(str(rule), wants))


def _describe_rule(rule: str, wants: Any) -> str:
    shown = json.dumps(wants, ensure_ascii=False, default=str)
    known = {
        "type": f"is not {_describe_type(wants)}",
        "enum": f"is none of {shown}",
        "const": f"is not {shown}",
        "minimum": f"is less than {shown}",
        "maximum": f"is more than {shown}",
        "exclusiveMinimum": f"is not more than {shown}",
        "exclusiveMaximum": f"is not less than {shown}",
        "minLength": f"has fewer than {shown} characters",
        "maxLength": f"has more than {shown} characters",
        "minItems": f"has fewer than {shown} items",
        "maxItems": f"has more than {shown} items",
        "multipleOf": f"is no multiple of {shown}",
    }
    return known.get(rule, f"does not fit the model's schema ({rule})")


def _describe_type(wants: Any) -> str:
    names = wants if isinstance(wants, list) else [wants]
    return " or ".join(_TYPE_NAMES.get(name, f"a {name}") for name in map(str, names))
