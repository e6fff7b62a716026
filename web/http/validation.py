"""Field types of request bodies, and validation errors as problems."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from moorage.text import is_storable, to_storable
from web.http.problems import FieldError, Problem

B = TypeVar("B", bound=BaseModel)

MAX_ERRORS: Final = 20  # of one response
MAX_NAME_CHARS: Final = 200
MAX_SCENE_NUMBER: Final = 2**63 - 1

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 10_000  # of one input: a model has dozens, and each value is visited several times
MAX_CHAIN_BYTES: Final = 2**21  # of all entries' inputs together, as JSON
_FIELD_CHARS: Final = 200
_UNSTORABLE: Final = "contains a NUL character or a lone surrogate, which cannot be stored"


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


def _check_text(value: Any) -> Any:
    if isinstance(value, str):
        if not is_storable(value):
            raise ValueError(_UNSTORABLE)
        if not value.strip():
            raise ValueError("is empty: give a value or omit the field")
    return value


def _check_path_segment(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("must not contain a slash or be a dot segment: it is part of /v1/projects/{project_id}")
    return value


def _check_scene_name(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is neither a string nor a number")
    if isinstance(value, str) and len(value) > MAX_NAME_CHARS:
        raise ValueError(f"should have at most {MAX_NAME_CHARS} characters")
    if isinstance(value, int) and abs(value) > MAX_SCENE_NUMBER:
        raise ValueError(f"is out of range: the absolute value must be at most {MAX_SCENE_NUMBER}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is not a finite number")
    return _check_text(value)


Storable = BeforeValidator(_check_text)
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), Storable]
ProjectId = Annotated[Name, AfterValidator(_check_path_segment)]
SceneName = Annotated[str | int | float | None, BeforeValidator(_check_scene_name)]


def invalid_field(field: str, message: str) -> Problem:
    return invalid_fields([field_error(field, message)])


def invalid_fields(errors: list[FieldError]) -> Problem:
    errors = errors[:MAX_ERRORS]
    first = f"{errors[0]['field']} {errors[0]['message']}".strip()
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, first + more, errors=errors)


def parse_body(
    body: dict[str, Any],
    model: type[B],
    errors: Sequence[FieldError] = (),
    explain: Callable[[ErrorDetails, type[B]], Iterable[FieldError]] | None = None,
) -> B:
    """Return a request's body as a model. Raises Problem: 422 with every invalid field, and with `errors`."""
    unstorable = [name for name in body if not is_storable(name)][:MAX_ERRORS]
    other_errors = [unknown_field(name, model) for name in unstorable] + list(errors)
    try:
        parsed = model.model_validate({name: value for name, value in body.items() if is_storable(name)})
    except ValidationError as error:
        items = limited_errors(error)
        explained = [e for item in items for e in (explain(item, model) if explain else [explain_error(item, model)])]
        raise invalid_fields([*explained, *other_errors]) from error
    if other_errors:
        raise invalid_fields(other_errors)
    return parsed


def find_scene_errors(body: dict[str, Any]) -> list[FieldError]:
    if body.get("scene") is None or body.get("project_id") is not None:
        return []
    return [{"field": "scene", "message": "requires project_id"}]


def limited_errors(error: ValidationError) -> list[ErrorDetails]:
    """Return the first MAX_ERRORS errors: a body may contain a hundred thousand unknown names."""
    return error.errors(include_url=False, include_input=False)[:MAX_ERRORS]


def explain_error(item: ErrorDetails, model: type[BaseModel]) -> FieldError:
    """Return the error of one field; the value that was sent is not repeated, only an unknown name."""
    field = to_storable(str(item["loc"][0]), 60) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        return unknown_field(field, model)
    if item["type"] == "missing":
        return {"field": field, "message": "is required"}
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return {"field": field, "message": f"{message[:1].lower()}{message[1:]}"}


def unknown_field(name: str, model: type[BaseModel]) -> FieldError:
    """Return the error of an unknown name, with the field that was probably meant."""
    fields = list(model.model_fields)
    close = difflib.get_close_matches(name[:MAX_NAME_CHARS], fields, n=1, cutoff=0.75)
    known = f"valid fields: {', '.join(fields)}" if fields else "none is accepted here"
    hint = f"did you mean {close[0]}?" if close else known
    return {"field": to_storable(name, 60), "message": f"is not a field: {hint}"}


def find_value_errors(value: Any, field: str, depth: int = 0) -> Iterator[FieldError]:
    """Yield the errors of a JSON value, each with the path of the nested value."""
    if depth > MAX_DEPTH:
        yield field_error(field, f"is nested more than {MAX_DEPTH} levels deep")
    elif isinstance(value, str) and not is_storable(value):
        yield field_error(field, _UNSTORABLE)
    elif isinstance(value, float) and not math.isfinite(value):
        yield field_error(field, "is not a finite number")
    elif isinstance(value, dict):
        for name, item in value.items():
            if is_storable(name):
                yield from find_value_errors(item, f"{field}.{name}", depth + 1)
            else:
                yield field_error(field, f"has a name that cannot be stored: {to_storable(name, 60)}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from find_value_errors(item, f"{field}[{index}]", depth + 1)


def has_too_many_values(value: Any) -> bool:
    level, count = [value], 0
    while level:
        count += len(level)
        if count > MAX_VALUES:
            return True
        level = [child for item in level for child in _children(item)]
    return False


def is_nested_deeper(value: Any, max_depth: int) -> bool:
    """Return True if arrays and objects are nested deeper than `max_depth`. Not recursive: safe at any depth."""
    level = [value]
    for _ in range(max_depth):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
    return bool(level)


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def field_error(field: str, message: str) -> FieldError:
    return {"field": to_storable(field, _FIELD_CHARS), "message": to_storable(message, 500)}
