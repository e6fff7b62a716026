"""Field types of request bodies, and validation errors as problems."""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Final, TypeVar, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from moorage.text import is_storable, to_storable
from web.http.problems import FieldError, Problem

B = TypeVar("B", bound=BaseModel)

MAX_ERRORS: Final = 20  # of one response
MAX_NAME_CHARS: Final = 200
MAX_SCENE_NUMBER: Final = 2**63 - 1

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 10_000  # of one input: a model has dozens, and each value is visited several times
MAX_BODY_VALUES: Final = 2000  # beside FREE_FIELDS: each may be an error, which costs 15 us on the event loop
FREE_FIELDS: Final = frozenset(("document", "input"))  # the application's and the model's: validated as one value
MAX_CHAIN_BYTES: Final = 2**21  # of all entries' inputs together, as JSON
INPUT_ERROR: Final = "model_input"  # pydantic's type of an error that holds those of a whole model input
_FIELD_CHARS: Final = 200
_MESSAGES: Final = {"missing": "is required", "model_type": "is not an object", "list_type": "is not a list"}
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


def _check_scene_type(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is neither a string nor a number")
    return value


def _check_scene_name(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_NAME_CHARS:
        raise ValueError(f"should have at most {MAX_NAME_CHARS} characters")
    if isinstance(value, int) and abs(value) > MAX_SCENE_NUMBER:
        raise ValueError(f"is out of range: the absolute value must be at most {MAX_SCENE_NUMBER}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is not a finite number")
    return _check_text(value)


def _check_canonical(text: Any) -> Any:
    """Accept a UUID in its canonical form only: otherwise a row had several URLs."""
    if str(UUID(text)) != text.lower():
        raise ValueError("is not in the canonical form")
    return text


RowId = Annotated[UUID, Field(strict=False)]  # in a body, as text
PathId = Annotated[UUID, BeforeValidator(_check_canonical)]
Storable = BeforeValidator(_check_text)
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), Storable]
ProjectId = Annotated[Name, AfterValidator(_check_path_segment)]
SceneInDocument = Annotated[str | int | float, BeforeValidator(_check_scene_type)]  # the document is the application's
SceneName = Annotated[SceneInDocument, AfterValidator(_check_scene_name)]


def invalid_field(field: str, message: str) -> Problem:
    return invalid_fields([field_error(field, message)])


def invalid_fields(errors: list[FieldError]) -> Problem:
    errors = errors[:MAX_ERRORS]
    first = f"{errors[0]['field']} {errors[0]['message']}".strip()
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, first + more, errors=errors)


def raise_errors(errors: list[FieldError]) -> None:
    """Raise Problem: 422 if there are errors."""
    if errors:
        raise invalid_fields(errors)


def parse_body(body: dict[str, Any], model: type[B]) -> B:
    """Return a request's body as a model. Raises Problem: 422 with the first MAX_ERRORS invalid fields."""
    if model.model_config.get("extra") != "allow" and has_too_many_values(body, MAX_BODY_VALUES, FREE_FIELDS):
        raise invalid_field("", f"the body holds more than {MAX_BODY_VALUES} values beside document and input")
    unstorable = [name for name in body if not is_storable(name)][:MAX_ERRORS]
    errors = [unknown_field(name, model) for name in unstorable]
    try:
        parsed = model.model_validate({name: value for name, value in body.items() if is_storable(name)})
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False)
        raise invalid_fields([*explain_errors(items, model), *errors]) from error
    raise_errors(errors)
    return parsed


def explain_errors(items: Sequence[Any], model: type[BaseModel] | None, skip: int = 0) -> list[FieldError]:
    """Return MAX_ERRORS of pydantic's errors as fields with messages; `skip` parts of their locations are left out."""
    return [error for item in items[:MAX_ERRORS] for error in _explain_error(item, item["loc"][skip:], model)]


def _explain_error(
    item: Mapping[str, Any], location: Sequence[str | int], model: type[BaseModel] | None
) -> Iterator[FieldError]:
    """Yield the errors in one of pydantic's; the value that was sent is not repeated, only an unknown name."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
    if item["type"] == INPUT_ERROR:
        for error in item["ctx"]["errors"]:
            yield field_error(path + error["field"], error["message"])
    elif item["type"] == "extra_forbidden" and model is not None:
        yield {
            **unknown_field(str(location[-1]), _find_model(model, location)),
            "field": to_storable(path, _FIELD_CHARS),
        }
    else:
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
        if location[-1:] == ("[key]",):  # of a name in an object; pydantic's location contains it
            path, message = str(location[-3]), f"has a name that {message}"
        yield field_error(path, _MESSAGES.get(item["type"], f"{message[:1].lower()}{message[1:]}"))


def _find_model(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    for part in location:
        field = model.model_fields.get(str(part))
        model = next(_list_models(field.annotation), model) if field else model
    return model


def _list_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _list_models(argument)


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


def has_too_many_values(value: Any, limit: int = MAX_VALUES, not_counted: Set[str] = frozenset()) -> bool:
    """Return True if a JSON value holds more than `limit` values beside those of the fields `not_counted`."""
    return any(count > limit for count in itertools.accumulate(map(len, _list_levels(value, not_counted))))


def is_nested_deeper(value: Any, max_depth: int) -> bool:
    """Return True if arrays and objects are nested deeper than `max_depth`."""
    levels = itertools.islice(_list_levels(value), max_depth, max_depth + 1)
    return any(isinstance(item, dict | list) for level in levels for item in level)


def _list_levels(value: Any, left_out: Set[str] = frozenset()) -> Iterator[list[Any]]:
    """Yield the values at each depth of a JSON value. Not recursive: safe at any depth."""
    level = [value]
    while level:
        yield level
        lists = (item if isinstance(item, list) else _list_values(item, left_out) for item in level)
        level = [child for children in lists for child in children]


def _list_values(item: Any, left_out: Set[str]) -> list[Any]:
    return [child for name, child in item.items() if name not in left_out] if isinstance(item, dict) else []


def field_error(field: str, message: str) -> FieldError:
    return {"field": to_storable(field, _FIELD_CHARS), "message": to_storable(message, 500)}
