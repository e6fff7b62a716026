"""Query parameters of the API and their validation."""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from web.http import validation
from web.http.validation import Name

Q = TypeVar("Q", bound="Query")

MAX_ROWS: Final = 100
MAX_EVENTS: Final = 1000
MAX_EVENT_ID: Final = 2**63 - 1

EventId = Annotated[int, Field(ge=0, le=MAX_EVENT_ID)]
JobStateFilter = Literal["open", "keeping", "succeeded", "partial", "failed", "cancelled"]


class Query(BaseModel):
    """A query without unknown or duplicate names."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PageQuery(Query):
    before: UUID | None = Field(None, description="`next` of the previous page")
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 50


class JobQuery(PageQuery):
    owner: Name | None = None
    state: JobStateFilter | None = None


class RenderQuery(JobQuery):
    kind: Literal["image", "video", "mixed"] | None = None
    style: Name | None = None
    project_id: Name | None = None


class EventPageQuery(Query):
    after: EventId = Field(0, description="`next` of the previous page")
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = 200


class ModelQuery(Query):
    kind: Literal["image", "video"] | None = None
    provider: Name | None = None


class SchemaQuery(Query):
    provider: Name = "replicate"


class StreamQuery(Query):
    job_id: UUID | None = None
    owner: Name | None = None


class LinkQuery(Query):
    """The end of a link's validity, in Unix seconds, and its signature."""

    until: Annotated[int, Field(ge=0, le=MAX_EVENT_ID)]
    signature: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class UploadQuery(Query):
    """The owner of an upload; in a form it is a field of the same name."""

    owner: Name | None = None


def parse_query(request: Request, model: type[Q]) -> Q:
    """Return a request's query as a model; raises as `parse_pairs` does."""
    return parse_pairs(request.query_params.multi_items(), model)


def parse_pairs(pairs: Iterable[tuple[str, str]], model: type[Q]) -> Q:
    """Return names and values as a model. Raises Problem: 422 with every invalid, unknown or duplicate name."""
    values: dict[str, Any] = {}
    errors: list[dict[str, str]] = []
    for name, value in pairs:
        if name not in model.model_fields:
            if len(errors) < validation.MAX_ERRORS:
                errors.append(validation.unknown_field(name, model))
        elif name in values:
            errors.append({"field": name, "message": "is given more than once"})
        values[name] = value
    known = {name: value for name, value in values.items() if name in model.model_fields}
    try:
        parsed = model.model_validate(known)
    except ValidationError as error:
        errors += [validation.explain_error(item, model) for item in validation.limited_errors(error)]
        raise validation.invalid_fields(errors) from error
    if errors:
        raise validation.invalid_fields(errors)
    return parsed


def split_page(rows: list[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], Any]:
    """Return the first `limit` rows, and the id of the last of them if there are more rows."""
    page = rows[:limit]
    return page, page[-1]["id"] if len(rows) > limit else None
