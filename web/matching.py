"""Whether an input is what its model takes: checked against the provider's schema, with the field named."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from web import inputs

MAX_ERRORS: Final = 20
_MAX_LOOKED_AT: Final = 100  # before they are put in order: a list may be wrong in each of its values

# Patterns are left to the provider: they are written for another engine, and one could run for ever. Addresses are not
# followed: with a registry of its own the library fetches none.
_Validator: Final = extend(  # type: ignore[no-untyped-call]  # types-jsonschema leaves it untyped
    Draft202012Validator, {"pattern": None, "patternProperties": None}
)
_FORMS: Final = {"object": "an object", "array": "a list", "string": "text", "integer": "an integer"}


class BadSchema(ValueError):
    """What the provider offers is no schema that can be used."""


def problems_of(value: Mapping[str, Any], schema: Mapping[str, Any], field: str) -> list[dict[str, str]]:
    """
    Return what a model would not take of an input, each with its field; the first 20.

    Raises:
        BadSchema: nothing can be said.
    """
    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        return [told for _, told in zip(range(MAX_ERRORS), _told(validator, value, field), strict=False)]
    except (Unresolvable, RecursionError, TypeError, ValueError) as error:
        raise BadSchema(f"{type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=64)
def _validator(text: str) -> Any:
    schema = json.loads(text)
    try:
        _Validator.check_schema(schema)
    except SchemaError as error:
        raise BadSchema(error.message) from error
    return _Validator(schema, registry=Registry())


def _told(validator: Any, value: Mapping[str, Any], field: str) -> Iterator[dict[str, str]]:
    some = itertools.islice(validator.iter_errors(dict(value)), _MAX_LOOKED_AT)
    for error in sorted(some, key=lambda found: list(map(str, found.absolute_path))):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield from _of(error, field + place)


def _of(error: ValidationError, field: str) -> Iterator[dict[str, str]]:
    """Yield what one error says; of what was sent only names are repeated, and what would be right."""
    rule, wants = error.validator, error.validator_value
    if rule == "required" and isinstance(wants, list) and isinstance(error.instance, dict):
        for name in wants:
            if name not in error.instance:
                yield inputs.wrong(f"{field}.{name}", "is missing: the model needs it")
    elif rule == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in error.instance:
            if name not in known:
                yield inputs.wrong(f"{field}.{name}", f"is no input of the model: it takes {', '.join(known)}")
    else:
        yield inputs.wrong(field, _message(str(rule), wants))


def _message(rule: str, wants: Any) -> str:
    shown = json.dumps(wants, ensure_ascii=False, default=str)
    known = {
        "type": f"is not {_type(wants)}",
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


def _type(wants: Any) -> str:
    names = wants if isinstance(wants, list) else [wants]
    return " or ".join(_FORMS.get(name, f"a {name}") for name in map(str, names))
