"""POST /v1/predictions and /v1/keep: register what the application started at a provider, or the URLs of its files."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import Depends, Response
from pydantic import Field
from starlette.requests import Request

from db.connection import Database
from moorage import logs
from moorage.model import JobDescription, Registration
from moorage.provider_types import OutputFile
from moorage.urls import HostAllowlist
from tasks.jobs import create
from tasks.jobs.create import CreatedJob
from web.api.job_responses import AcceptedJob, RegisteredPrediction
from web.api.job_schema import IdempotencyKey, ResultFields, Seconds
from web.http import validation
from web.http.json_body import JsonBody
from web.http.router import Router
from web.http.validation import Name, Storable, field_error, invalid_field
from web.services.context import AppContext, ApplicationOnly, Context

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


MAX_URLS: Final = 100


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
    request: Request,
    response: Response,
    ctx: Context,
    body: Annotated[KeepCreate, Depends(JsonBody(KeepCreate))],
    key: IdempotencyKey = None,
) -> AcceptedJob:
    """Download and store files from any public host, as one job; its render has the files in this order."""
    body.check_notify_url(ctx.settings)
    _check_urls(ctx, body.urls)
    sha256 = hashlib.sha256(body.model_dump_json().encode()).hexdigest() if key else None
    fields = body.model_dump(exclude={"urls", "policy"})
    description = JobDescription(
        partial=body.policy or ctx.settings.partial, idempotency_key=key, request_sha256=sha256, **fields
    )
    files = [OutputFile(f"file[{n}]", url=url.strip()) for n, url in enumerate(body.urls)]
    job = await ctx.database.run(lambda database: _store_job(database, ctx, description, files))
    log.info("job.created", job_id=job.job_id, files=len(files), is_new=job.is_new)
    response.status_code = 202 if job.is_new else 200
    response.headers["Location"] = f"{request.url.path.removesuffix('/keep')}/jobs/{job.job_id}"
    return AcceptedJob.model_validate({name: getattr(job, name) for name in AcceptedJob.model_fields})


def _check_urls(ctx: AppContext, urls: Sequence[str]) -> None:
    settings = ctx.settings
    hosts = HostAllowlist(settings.keep_hosts, settings.egress_allow, setting="MOORAGE_KEEP_HOSTS")
    errors = [
        field_error(f"urls[{n}]", reason)
        for n, url in enumerate(urls)
        if (reason := hosts.refusal_reason(url.strip(), any_host=not settings.keep_hosts))
    ]
    if errors:
        raise validation.invalid_fields(errors)


def _store_job(
    database: Database, ctx: AppContext, description: JobDescription, files: Sequence[OutputFile]
) -> CreatedJob:
    notify = bool(ctx.settings.notify_urls)
    job = create.create_keep_job(
        database, ctx.settings, ctx.providers, description, files, actor="api", notify=notify,
        limits=ctx.settings.owner_limits,
    )  # fmt: skip
    ctx.relay.enqueue(*job.wakes)
    return job
