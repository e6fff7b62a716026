"""What lists take in the query of their address, and what is wrong with what they were given."""

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


class Query(BaseModel):
    """A query in which every name is known and stands once."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PageQuery(Query):
    """One page of a list, newest first."""

    before: UUID | None = Field(None, description="`next` of the page before")
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 50


class RenderQuery(PageQuery):
    """Which renders are listed."""

    owner: Name | None = None
    kind: Literal["image", "video", "mixed"] | None = None
    state: Literal["open", "keeping", "succeeded", "partial", "failed", "cancelled"] | None = None  # of the job
    style: Name | None = None
    project_id: Name | None = None


class JobQuery(PageQuery):
    """Which jobs are listed."""

    owner: Name | None = None
    state: Literal["open", "keeping", "succeeded", "partial", "failed", "cancelled"] | None = None


class EventPageQuery(Query):
    """Which events of a job are listed, oldest first."""

    after: EventId = Field(0, description="`next` of the page before")
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = 200


class ModelQuery(Query):
    """Which models are listed."""

    kind: Literal["image", "video"] | None = None
    provider: Name | None = None


class SchemaQuery(Query):
    """Whose model is meant."""

    provider: Name = "replicate"


class StreamQuery(Query):
    """Which events are streamed."""

    job_id: UUID | None = None
    owner: Name | None = None


class UploadQuery(Query):
    """Whose an upload is; the same name is a field where the file comes in a form."""

    owner: Name | None = None


def parse_query(request: Request, model: type[Q]) -> Q:
    """
    Return what a request's query asks for.

    Raises:
        Problem: 422 with every name that is wrong, unknown or given twice.
    """
    return parse_pairs(request.query_params.multi_items(), model)


def parse_pairs(pairs: Iterable[tuple[str, str]], model: type[Q]) -> Q:
    """
    Return what names with values, of a query or a form, ask for.

    Raises:
        Problem: 422 with every name that is wrong, unknown or given twice.
    """
    given: dict[str, Any] = {}
    errors: list[dict[str, str]] = []
    for name, value in pairs:
        if name not in model.model_fields:
            if len(errors) < validation.MAX_ERRORS:
                errors.append(validation.unknown_field(name, model))
        elif name in given:
            errors.append({"field": name, "message": "is given twice: write it once"})
        given[name] = value
    known = {name: value for name, value in given.items() if name in model.model_fields}
    try:
        read = model.model_validate(known)
    except ValidationError as error:
        raise validation.invalid_fields(
            errors + [validation.explain_error(item, model) for item in validation.limited_errors(error)]
        ) from error
    if errors:
        raise validation.invalid_fields(errors)
    return read
