"""POST /v1/predictions: register a prediction that the application started at a provider."""

from typing import Annotated, Final, Literal

from fastapi import Depends, Response
from pydantic import Field
from starlette.requests import Request

from db.connection import Database
from moorage import logs
from moorage.model import Registration
from tasks.jobs import create
from tasks.jobs.create import CreatedJob
from web.api.job_responses import RegisteredPrediction
from web.api.job_schema import ResultFields, Seconds
from web.http.json_body import JsonBody
from web.http.router import Router
from web.http.validation import Name, Storable, invalid_field
from web.services.dependencies import ApplicationOnly, Context

log = logs.get_logger(__name__)

router: Final = Router(tags=["jobs"])


class PredictionCreate(ResultFields):
    """A prediction that the application started at a provider, and where its files belong."""

    kind: Literal["image", "video"] = "image"
    provider: Annotated[str, Field(max_length=60), Storable]
    external_id: Annotated[str, Field(max_length=500), Storable]  # the provider's id of the prediction
    model: Name | None = None
    deadline_seconds: Seconds | None = None

    def build_registration(self, partial: Literal["keep", "discard"]) -> Registration:
        """Return the registration to store. `partial`: the policy for partial results if the body has none."""
        return Registration(partial=self.policy or partial, **self.model_dump(exclude={"policy"}))


# An owner could claim another owner's prediction.
@router.post(
    "/predictions",
    status_code=201,
    response_description="registered",
    responses={200: {"description": "already registered, unchanged", "model": RegisteredPrediction}},
    dependencies=[ApplicationOnly],
)
async def register_prediction(
    request: Request,
    response: Response,
    ctx: Context,
    body: Annotated[PredictionCreate, Depends(JsonBody(PredictionCreate))],
) -> RegisteredPrediction:
    """Register a prediction; one that is already registered is returned unchanged."""
    body.check_notify_url(ctx.settings)
    registration = body.build_registration(ctx.settings.partial)
    provider = ctx.get_provider(registration.provider)
    if not provider.is_enabled and not provider.can_poll:
        message = f"{provider.name} is not configured: set {provider.webhook_setting} on the server"
        raise invalid_field("provider", message)

    def register(database: Database) -> CreatedJob:
        registered = create.register_prediction(database, ctx.settings, provider, registration)
        ctx.relay.enqueue(*registered.wakes)
        return registered

    job = await ctx.database.run(register)
    log.info("prediction.registered", job_id=job.job_id, prediction_id=job.prediction_id, is_new=job.is_new)
    response.status_code = 201 if job.is_new else 200
    prefix = request.url.path.removesuffix("/predictions")
    response.headers["Location"] = f"{prefix}/jobs/{job.job_id}"
    fields = {"job_id": job.job_id, "prediction_id": job.prediction_id, "state": job.state, "is_new": job.is_new}
    return RegisteredPrediction.model_validate(
        {**fields, "provider": registration.provider, "external_id": registration.external_id}
    )
