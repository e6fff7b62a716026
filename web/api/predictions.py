"""POST /v1/predictions: register what an application started at a provider."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from db import jobs
from db.connection import Database
from moorage import logs
from moorage.model import Registration
from moorage.text import is_storable, to_storable
from providers.base import Provider
from tasks.jobs import create as registration
from tasks.jobs.create import ForeignProject, RegisteredJob
from web.http import json_body, problems, validation
from web.http.validation import (
    Name,
    ProjectId,
    SceneName,
    Storable,
    explain_error,
    invalid_fields,
    limited_errors,
    unknown_field,
    unstorable_names,
)
from web.services import context

log = logs.get_logger(__name__)


async def register_prediction(request: Request) -> Response:
    """Answer 201 with the new job, 200 with the one whose prediction was registered before: that one stands."""
    at = context.get_context(request)
    wanted = parse_registration(await json_body.read_object(request), partial=at.settings.partial)
    provider = _find_provider(at.providers, wanted.provider)

    def work(database: Database) -> tuple[RegisteredJob, str]:
        try:
            made = registration.register_prediction(database, at.settings, provider, wanted)
        except ForeignProject as error:
            raise validation.invalid_field("project_id", str(error)) from error
        at.relay.enqueue(*made.wakes)
        return made, "open" if made.is_new else _read_job_state(database, made)

    made, state = await at.database.run(work)
    log.info("prediction.registered", job_id=made.job_id, prediction_id=made.prediction_id, is_new=made.is_new)
    fields = {
        "job_id": made.job_id,
        "prediction_id": made.prediction_id,
        "provider": wanted.provider,
        "external_id": wanted.external_id,
        "state": state,
        "is_new": made.is_new,
    }
    location = f"{request.url.path.removesuffix('/predictions')}/jobs/{made.job_id}"  # with the prefix it was asked by
    return problems.json_response(201 if made.is_new else 200, fields, {"Location": location})


def _read_job_state(database: Database, made: RegisteredJob) -> str:
    row = database.run(lambda conn: jobs.get_with_render(conn, made.job_id))
    if row is None:
        raise LookupError(f"prediction {made.prediction_id} has no job")
    return str(row["state"])


def _find_provider(providers: Mapping[str, Provider], name: str) -> Provider:
    provider = providers.get(name)
    if provider is None:
        raise validation.invalid_field(
            "provider", f"{to_storable(name, 60)!r} does not exist: write one of {_list_names(providers)}"
        )
    if not provider.is_enabled and not provider.can_poll:
        raise validation.invalid_field(
            "provider", f"{name} cannot be heard of: set {provider.webhook_setting} where moorage runs"
        )
    return provider


def _list_names(providers: Mapping[str, Provider]) -> str:
    return ", ".join(sorted(providers))


class PredictionCreate(BaseModel):
    """A prediction that the application started at a provider, and where its files belong."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: Annotated[str, Field(max_length=60), Storable]
    external_id: Annotated[str, Field(max_length=500), Storable]  # the provider's id of the prediction
    owner: Name
    kind: Literal["image", "video"] = "image"
    model: Name | None = None
    mode: Name | None = None
    room_type: Name | None = None
    style: Name | None = None
    prompt: Annotated[str, Field(max_length=20_000), Storable] | None = None
    policy: Literal["keep", "discard"] | None = None  # of partial results
    project_id: ProjectId | None = None
    scene: SceneName = None
    deadline_seconds: Annotated[float, Field(ge=1, le=7 * 86400)] | None = None


def parse_registration(body: dict[str, Any], *, partial: Literal["keep", "discard"]) -> Registration:
    """
    Return what a request's body asks for.

    Args:
        partial: what becomes of partial results where the body has no `policy`.

    Raises:
        Problem: 422 with every field that is wrong.
    """
    errors = [unknown_field(name, PredictionCreate) for name in unstorable_names(body)]
    if body.get("scene") is not None and body.get("project_id") is None:
        errors.append({"field": "scene", "message": "names a place in a project: write project_id too, or no scene"})
    try:
        asked = PredictionCreate.model_validate({name: value for name, value in body.items() if is_storable(name)})
    except ValidationError as error:
        errors += [explain_error(item, PredictionCreate) for item in limited_errors(error)]
    if errors:
        raise invalid_fields(errors)
    return Registration(partial=asked.policy or partial, **asked.model_dump(exclude={"policy"}))
