"""POST /v1/predictions and /v1/keep: register what the application started at a provider, or the URLs of its files."""

import hashlib
from dataclasses import asdict
from functools import partial
from typing import Annotated, Final, Literal

from fastapi import Response
from pydantic import Field
from starlette.requests import Request

from egress import kept_urls
from moorage import logs
from moorage.model import JobDescription, Registration
from moorage.provider_types import OutputFile
from tasks.jobs import create
from web.api.job_schema import IdempotencyKey, ResultFields, Seconds
from web.api.job_views import AcceptedJob, RegisteredPrediction
from web.http import validation
from web.http.json_body import Json
from web.http.router import Router
from web.http.validation import Name, Storable, field_error, invalid_field
from web.services.context import ApplicationOnly, Context

log = logs.get_logger(__name__)

MAX_URLS: Final = 100

router: Final = Router(tags=["jobs"])


class PredictionCreate(ResultFields):
    """A prediction that the application started at a provider, and where its files belong."""

    kind: Literal["image", "video"] = "image"
    provider: Annotated[str, Field(max_length=60), Storable]
    external_id: Annotated[str, Field(max_length=500), Storable]  # the provider's id of the prediction
    model: Name | None = None
    deadline_seconds: Seconds | None = None


# An owner could claim another owner's prediction.
@router.post(
    "/predictions",
    status_code=201,
    response_description="registered",
    responses={200: {"description": "already registered, unchanged", "model": RegisteredPrediction}},
    dependencies=[ApplicationOnly],
)
async def register_prediction(
    request: Request, response: Response, ctx: Context, body: Json[PredictionCreate]
) -> RegisteredPrediction:
    """Register a prediction; one that is already registered is returned unchanged."""
    registration = Registration(**body.build_fields(ctx.settings))
    provider = ctx.get_provider(body.provider)
    if not provider.is_enabled and not provider.can_poll:
        message = f"{provider.name} is not configured: set {provider.webhook_setting} on the server"
        raise invalid_field("provider", message)
    if provider.needs_model and body.model is None:
        raise invalid_field("model", f"must name a model: predictions of {provider.name} are polled by it")
    job = await ctx.run_and_wake(
        partial(create.register_prediction, settings=ctx.settings, provider=provider, registration=registration)
    )
    log.info("prediction.registered", job_id=job.job_id, prediction_id=job.prediction_id, is_new=job.is_new)
    response.status_code = 201 if job.is_new else 200
    response.headers["Location"] = f"{request.url.path.removesuffix('/predictions')}/jobs/{job.job_id}"
    fields = {"provider": body.provider, "external_id": body.external_id}
    return RegisteredPrediction.model_validate({**asdict(job), **fields})


class KeepCreate(ResultFields):
    """URLs of files to store, and where the files belong."""

    kind: Literal["image", "video", "mixed"] = "mixed"
    urls: Annotated[list[Annotated[str, Storable]], Field(min_length=1, max_length=MAX_URLS)]


# An owner could make this deployment download from any host.
@router.post(
    "/keep",
    status_code=202,
    response_description="accepted",
    responses={200: {"description": "the existing job of this Idempotency-Key", "model": AcceptedJob}},
    dependencies=[ApplicationOnly],
)
async def keep_files(
    request: Request, response: Response, ctx: Context, body: Json[KeepCreate], key: IdempotencyKey = None
) -> AcceptedJob:
    """Download and store files from any public host, as one job; its render has the files in this order."""
    settings, urls = ctx.settings, [url.strip() for url in body.urls]
    reasons = [kept_urls.find_problem(settings, url) for url in urls]
    validation.raise_errors([field_error(f"urls[{n}]", reason) for n, reason in enumerate(reasons) if reason])
    sha256 = hashlib.sha256(body.model_dump_json().encode()).hexdigest() if key else None
    fields = body.build_fields(settings, "urls")
    description = JobDescription(**fields, idempotency_key=key, request_sha256=sha256)
    files = [OutputFile(f"file[{n}]", url=url) for n, url in enumerate(urls)]
    job = await ctx.run_and_wake(
        partial(
            create.create_keep_job, settings=settings, providers=ctx.providers, description=description, files=files,
            actor="api", notify=bool(settings.notify_urls), limits=settings.owner_limits,
        )
    )  # fmt: skip
    log.info("job.created", job_id=job.job_id, files=len(files), is_new=job.is_new)
    response.status_code = 202 if job.is_new else 200
    response.headers["Location"] = f"{request.url.path.removesuffix('/keep')}/jobs/{job.job_id}"
    return AcceptedJob.model_validate(job, from_attributes=True)
