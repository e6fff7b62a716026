"""Query parameters of the API."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WrapValidator
from starlette.requests import Request

from moorage.model import JobState
from web.http import validation
from web.http.validation import Name

Q = TypeVar("Q", bound=BaseModel)

MAX_ROWS: Final = 100
MAX_EVENTS: Final = 1000
MAX_WAIT_SECONDS: Final = 60.0
MAX_EVENT_ID: Final = 2**63 - 1


def _parse_time(value: Any, parse: Callable[[Any], datetime]) -> datetime:
    """Refuse numbers, which pydantic reads as Unix seconds; PostgreSQL reads no offset of 16 hours or more."""
    if not isinstance(value, str) or "-" not in value[1:]:
        raise ValueError("is not a time with a date and an offset, such as 2026-03-01T12:00:00Z")
    try:
        return parse(value).astimezone(UTC)
    except OverflowError:
        raise ValueError("is not a time between the years 1 and 9999") from None


Time = Annotated[AwareDatetime, WrapValidator(_parse_time), Field(strict=False)]
Filters = Annotated[Q, Query()]  # the type of a parameter: the query of a request as a model


# Of pages: links may carry parameters of others.
IGNORE_UNKNOWN: Final = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class BaseQuery(BaseModel):
    """A query without unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PageQuery(BaseQuery):
    before: UUID | None = Field(None, description="`next` of the previous page")
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 50


class JobQuery(PageQuery):
    owner: Name | None = None
    state: JobState | None = None
    kind: Literal["image", "video", "mixed"] | None = None


class WaitQuery(BaseQuery):
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = Field(
        0, description="seconds to wait for the job to settle, before it is returned as it is"
    )


class UploadQuery(PageQuery):
    owner: Name | None = None


class RenderQuery(JobQuery):
    style: Name | None = None
    project_id: Name | None = None


class ProjectQuery(BaseQuery):
    owner: Name | None = None
    after: Name | Literal[""] = Field("", description="`next` of the previous page")
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 50


class EventQuery(BaseQuery):
    after: Annotated[int, Field(ge=0, le=MAX_EVENT_ID)] = Field(0, description="`next` of the previous page")
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = 200


class ModelQuery(BaseQuery):
    kind: Literal["image", "video"] | None = None
    provider: Name | None = None


class SchemaQuery(BaseQuery):
    provider: Name = "replicate"


class StreamQuery(BaseQuery):
    job_id: UUID | None = None
    owner: Name | None = None


class SessionQuery(BaseQuery):
    replace: bool = Field(False, description="replace the session of another owner")


class TokenOwnerQuery(BaseQuery):
    owner: Name


class LinkQuery(BaseQuery):
    """The end of a link's validity, in Unix seconds, and its signature."""

    until: Annotated[int, Field(ge=0, le=MAX_EVENT_ID)] = 0  # without it, the link is invalid
    signature: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""


class OwnerQuery(BaseQuery):
    """The owner of an upload or project; in the form of an upload it is a field of the same name."""

    owner: Name | None = None


async def check_names(request: Request) -> None:
    """
    Dependency: no name is given twice, of which a proxy may have checked the other value. Raises Problem: 422.

    Operations without a query accept no name; links to files ignore all, since others add theirs.
    """
    route = request.scope["route"]
    if not any(part.query_params for part in (route.dependant, *route.dependant.dependencies)):
        names = () if "/assets/" in route.path else request.query_params
        validation.raise_errors([validation.unknown_field(name, validation.Body) for name in names])
        return
    counts = Counter(name for name, _ in request.query_params.multi_items())
    twice = [name for name, count in counts.items() if count > 1]
    validation.raise_errors([validation.field_error(name, "is given more than once") for name in twice])


def split_page(rows: list[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], Any]:
    """Return the first `limit` rows, and the id of the last of them if there are more rows."""
    page = rows[:limit]
    return page, page[-1]["id"] if len(rows) > limit else None
