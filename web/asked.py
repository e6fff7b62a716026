"""What `POST /v1/predictions` takes, and what is wrong with what it was given."""

import difflib
import math
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from moorage.model import Registration
from moorage.text import is_storable, storable
from web.problems import Problem

MAX_ERRORS: Final = 20  # of one answer
MAX_NAME: Final = 200  # characters
MAX_SCENE: Final = 2**63 - 1


def _fits(value: Any) -> Any:
    """Refuse text that PostgreSQL cannot store, before anything else would fail on it."""
    if isinstance(value, str):
        if not is_storable(value):
            raise ValueError("holds a NUL character or a lone surrogate, which cannot be stored")
        if not value.strip():
            raise ValueError("is empty: write something, or leave the field out")
    return value


def _stands_in_a_path(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("stands in the path of /v1/projects/{project_id}: write it without a slash, not as dots")
    return value


def _names_a_scene(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is neither a string nor a number")
    if isinstance(value, str) and len(value) > MAX_NAME:
        raise ValueError(f"should have at most {MAX_NAME} characters")
    if isinstance(value, int) and abs(value) > MAX_SCENE:
        raise ValueError(f"is further from zero than {MAX_SCENE}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is larger than a number can be")
    return _fits(value)


Stored = BeforeValidator(_fits)
Name = Annotated[str, Field(max_length=MAX_NAME), Stored]
ProjectId = Annotated[Name, AfterValidator(_stands_in_a_path)]
SceneName = Annotated[str | int | float | None, BeforeValidator(_names_a_scene)]


class Asked(BaseModel):
    """A prediction that the application started at a provider, and where its files belong."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: Annotated[str, Field(max_length=60), Stored]
    external_id: Annotated[str, Field(max_length=500), Stored]  # the provider's id of the prediction
    owner: Name
    kind: Literal["image", "video"] = "image"
    model: Name | None = None
    mode: Name | None = None
    room_type: Name | None = None
    style: Name | None = None
    prompt: Annotated[str, Field(max_length=20_000), Stored] | None = None
    policy: Literal["keep", "discard"] | None = None  # of partial results
    project_id: ProjectId | None = None
    scene: SceneName = None
    deadline_seconds: Annotated[float, Field(ge=1, le=7 * 86400)] | None = None


def read(body: dict[str, Any], *, partial: Literal["keep", "discard"]) -> Registration:
    """
    Return what a request's body asks for.

    Args:
        partial: what becomes of partial results where the body has no `policy`.

    Raises:
        Problem: 422 with every field that is wrong.
    """
    errors = [stray(name, Asked) for name in unstorable(body)]
    if body.get("scene") is not None and body.get("project_id") is None:
        errors.append({"field": "scene", "message": "names a place in a project: write project_id too, or no scene"})
    try:
        asked = Asked.model_validate({name: value for name, value in body.items() if is_storable(name)})
    except ValidationError as error:
        errors += [explain(item, Asked) for item in first(error)]
    if errors:
        raise invalid(errors)
    return Registration(partial=asked.policy or partial, **asked.model_dump(exclude={"policy"}))


def wrong(field: str, message: str) -> Problem:
    """Return the 422 of one field."""
    return invalid([{"field": field, "message": message}])


def invalid(errors: list[dict[str, str]]) -> Problem:
    """Return the 422 of several fields, of which the first 20 are told."""
    errors = errors[:MAX_ERRORS]
    first = f"{errors[0]['field']} {errors[0]['message']}".strip()
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, first + more, errors=errors)


def first(error: ValidationError) -> list[ErrorDetails]:
    """Return what is wrong, no more than is told: a body may hold a hundred thousand names that are no fields."""
    return error.errors(include_url=False, include_input=False)[:MAX_ERRORS]


def unstorable(body: dict[str, Any]) -> list[str]:
    """Return the names in a body that cannot be stored, as many as are told."""
    return [name for name in body if not is_storable(name)][:MAX_ERRORS]


def explain(item: ErrorDetails, model: type[BaseModel]) -> dict[str, str]:
    """Return what is wrong with one field; what was sent is not repeated, only a name that is no field."""
    field = storable(str(item["loc"][0]), 60) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        return stray(field, model)
    if item["type"] == "missing":
        return {"field": field, "message": "is missing: it must be given"}
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return {"field": field, "message": f"{message[:1].lower()}{message[1:]}"}


def stray(name: str, model: type[BaseModel]) -> dict[str, str]:
    """Return what is wrong with a name that is no field, and which one may have been meant."""
    fields = list(model.model_fields)
    close = difflib.get_close_matches(name[:MAX_NAME], fields, n=1, cutoff=0.75)
    known = f"the fields are {', '.join(fields)}" if fields else "there are none here"
    instead = f"did you mean {close[0]}?" if close else known
    return {"field": storable(name, 60), "message": f"is not a field: {instead}"}
