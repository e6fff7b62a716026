"""What `POST /v1/predictions` takes, and what is wrong with what it was given."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from moorage.text import is_storable, to_storable
from web.http.problems import Problem

MAX_ERRORS: Final = 20  # of one answer
MAX_NAME_CHARS: Final = 200  # characters
MAX_SCENE_NUMBER: Final = 2**63 - 1

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 10_000  # of one input: a model takes dozens, and each is looked at several times
MAX_CHAIN_BYTES: Final = 2**21  # of all entries' inputs together, as JSON
_FIELD_CHARS: Final = 200


def _check_text(value: Any) -> Any:
    """Refuse text that PostgreSQL cannot store, before anything else would fail on it."""
    if isinstance(value, str):
        if not is_storable(value):
            raise ValueError("holds a NUL character or a lone surrogate, which cannot be stored")
        if not value.strip():
            raise ValueError("is empty: write something, or leave the field out")
    return value


def _check_path_segment(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("stands in the path of /v1/projects/{project_id}: write it without a slash, not as dots")
    return value


def _check_scene_name(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is neither a string nor a number")
    if isinstance(value, str) and len(value) > MAX_NAME_CHARS:
        raise ValueError(f"should have at most {MAX_NAME_CHARS} characters")
    if isinstance(value, int) and abs(value) > MAX_SCENE_NUMBER:
        raise ValueError(f"is further from zero than {MAX_SCENE_NUMBER}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is larger than a number can be")
    return _check_text(value)


Storable = BeforeValidator(_check_text)
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), Storable]
ProjectId = Annotated[Name, AfterValidator(_check_path_segment)]
SceneName = Annotated[str | int | float | None, BeforeValidator(_check_scene_name)]


def invalid_field(field: str, message: str) -> Problem:
    """Return the 422 of one field."""
    return invalid_fields([{"field": field, "message": message}])


def invalid_fields(errors: list[dict[str, str]]) -> Problem:
    """Return the 422 of several fields, of which the first 20 are told."""
    errors = errors[:MAX_ERRORS]
    first = f"{errors[0]['field']} {errors[0]['message']}".strip()
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, first + more, errors=errors)


def limited_errors(error: ValidationError) -> list[ErrorDetails]:
    """Return what is wrong, no more than is told: a body may hold a hundred thousand names that are no fields."""
    return error.errors(include_url=False, include_input=False)[:MAX_ERRORS]


def unstorable_names(body: dict[str, Any]) -> list[str]:
    """Return the names in a body that cannot be stored, as many as are told."""
    return [name for name in body if not is_storable(name)][:MAX_ERRORS]


def explain_error(item: ErrorDetails, model: type[BaseModel]) -> dict[str, str]:
    """Return what is wrong with one field; what was sent is not repeated, only a name that is no field."""
    field = to_storable(str(item["loc"][0]), 60) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        return unknown_field(field, model)
    if item["type"] == "missing":
        return {"field": field, "message": "is missing: it must be given"}
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return {"field": field, "message": f"{message[:1].lower()}{message[1:]}"}


def unknown_field(name: str, model: type[BaseModel]) -> dict[str, str]:
    """Return what is wrong with a name that is no field, and which one may have been meant."""
    fields = list(model.model_fields)
    close = difflib.get_close_matches(name[:MAX_NAME_CHARS], fields, n=1, cutoff=0.75)
    known = f"the fields are {', '.join(fields)}" if fields else "there are none here"
    instead = f"did you mean {close[0]}?" if close else known
    return {"field": to_storable(name, 60), "message": f"is not a field: {instead}"}


def find_value_errors(value: Any, field: str, depth: int = 0) -> Iterator[dict[str, str]]:
    """Yield what is wrong with a value of JSON, each with the place where it stands."""
    if depth > MAX_DEPTH:
        yield field_error(field, f"is nested more than {MAX_DEPTH} deep")
    elif isinstance(value, str) and not is_storable(value):
        yield field_error(field, "holds a NUL character or a lone surrogate, which cannot be stored")
    elif isinstance(value, float) and not math.isfinite(value):
        yield field_error(field, "is larger than a number can be")
    elif isinstance(value, dict):
        for name, item in value.items():
            if is_storable(name):
                yield from find_value_errors(item, f"{field}.{name}", depth + 1)
            else:
                yield field_error(field, f"has a name that cannot be stored: {to_storable(name, 60)}")
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from find_value_errors(item, f"{field}[{n}]", depth + 1)


def has_too_many_values(value: Any) -> bool:
    """Return whether a value of JSON holds more than MAX_VALUES values, itself counted."""
    level, seen = [value], 0
    while level:
        seen += len(level)
        if seen > MAX_VALUES:
            return True
        level = [inner for one in level for inner in _inside(one)]
    return False


def is_nested_deeper(value: Any, max_depth: int) -> bool:
    """Return whether brackets stand in brackets more than `most` deep; whoever walks down by calls would fail."""
    level = [value]
    for _ in range(max_depth):
        level = [inner for one in level for inner in _inside(one) if isinstance(inner, dict | list)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def json_size_bytes(inputs: Sequence[Mapping[str, Any]]) -> int:
    """Return how much inputs take as JSON."""
    return sum(len(json.dumps(dict(value))) for value in inputs)


def field_error(field: str, message: str) -> dict[str, str]:
    """Return what is wrong with a field whose name may hold anything."""
    return {"field": to_storable(field, _FIELD_CHARS), "message": to_storable(message, 500)}
