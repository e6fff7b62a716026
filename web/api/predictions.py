"""POST /v1/predictions: register a prediction that the application started at a provider."""

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from db import jobs
from db.connection import Database
from moorage import logs
from moorage.model import Registration
from tasks.jobs import create
from tasks.jobs.create import ForeignProject, RegisteredJob
from web.api.job_schema import ResultFields
from web.http import json_body, problems, validation
from web.http.validation import Name, Storable, invalid_field
from web.services import context

log = logs.get_logger(__name__)


async def register_prediction(request: Request) -> Response:
    """Register a prediction; one that is already registered is returned unchanged."""
    ctx = context.get_context(request)
    registration = parse_registration(await json_body.read_object(request), partial=ctx.settings.partial)
    provider = ctx.get_provider(registration.provider)
    if not provider.is_enabled and not provider.can_poll:
        message = f"{provider.name} is not configured: set {provider.webhook_setting} on the server"
        raise invalid_field("provider", message)

    def register(database: Database) -> tuple[RegisteredJob, str]:
        try:
            registered = create.register_prediction(database, ctx.settings, provider, registration)
        except ForeignProject as error:
            raise invalid_field("project_id", str(error)) from error
        ctx.relay.enqueue(*registered.wakes)
        return registered, "open" if registered.is_new else _read_job_state(database, registered)

    job, state = await ctx.database.run(register)
    log.info("prediction.registered", job_id=job.job_id, prediction_id=job.prediction_id, is_new=job.is_new)
    fields = {
        "job_id": job.job_id,
        "prediction_id": job.prediction_id,
        "provider": registration.provider,
        "external_id": registration.external_id,
        "state": state,
        "is_new": job.is_new,
    }
    location = f"{request.url.path.removesuffix('/predictions')}/jobs/{job.job_id}"  # with the prefix of the request
    return problems.json_response(201 if job.is_new else 200, fields, {"Location": location})


class PredictionCreate(ResultFields):
    """A prediction that the application started at a provider, and where its files belong."""

    provider: Annotated[str, Field(max_length=60), Storable]
    external_id: Annotated[str, Field(max_length=500), Storable]  # the provider's id of the prediction
    model: Name | None = None


def parse_registration(body: dict[str, Any], *, partial: Literal["keep", "discard"]) -> Registration:
    """Return a body as a registration. `partial`: the policy for partial results if the body has none."""
    parsed = validation.parse_body(body, PredictionCreate, validation.find_scene_errors(body))
    return Registration(partial=parsed.policy or partial, **parsed.model_dump(exclude={"policy"}))


def _read_job_state(database: Database, registered: RegisteredJob) -> str:
    row = database.run(lambda conn: jobs.get_with_render(conn, registered.job_id))
    if row is None:
        raise LookupError(f"prediction {registered.prediction_id} has no job")
    return str(row["state"])
