"""POST /v1/jobs: request a generation, also as a form with files. It is validated completely before it is stored."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, Final
from uuid import UUID

from fastapi import Response
from starlette.requests import Request

from db import owner_limits
from db.connection import Connection
from moorage import ids, logs
from moorage.model import FallbackEntry, JobRequest
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import create
from tasks.jobs.create import CreatedJob
from tasks.predictions import references
from web.api import job_inputs
from web.api.job_schema import AUTO_MODEL, IdempotencyKey, JobCreate, ParsedEntry
from web.api.job_views import NewJob
from web.http import json_body, problems, validation
from web.http.permissions import Caller, Level
from web.http.router import Router
from web.services import multipart
from web.services.context import AnyCaller, AppContext, Context
from web.services.database import ANSWER_SECONDS
from web.services.multipart import Form
from web.services.upload_spool import SpooledFile, UploadSpool

log = logs.get_logger(__name__)

router: Final = Router(prefix="/jobs", tags=["jobs"])

JOB_FIELD: Final = "job"
MAX_FILES: Final = 8
MAX_QUICK_VALUES: Final = 1000  # those of inputs are visited several times: eighty thousand take half a second


@dataclass(frozen=True, slots=True)
class JobBody:
    sent: dict[str, Any]  # as received, for the hash of the request
    resolved: dict[str, Any]  # with each `{"file": name}` replaced by `{"upload": id}`
    files: Mapping[UUID, SpooledFile] = field(default_factory=dict)  # by the id of the upload they become
    names: Sequence[str] = ()  # of the files

    async def compute_sha256(self) -> str:
        """Return the hash of the body and the files; independent of white space and the order of names and files."""
        digests = []
        for name, spooled in zip(self.names, self.files.values(), strict=True):
            await spooled.flush()
            digests.append((name, await asyncio.to_thread(_hash_file, spooled.file)))
        text = json.dumps([self.sent, sorted(digests)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    async def store_files(self, spool: UploadSpool, owner: str) -> None:
        """Store every file as an upload; raises as `UploadSpool.store` does. Files stored before an error remain."""
        for upload_id, file in self.files.items():
            await spool.store(file, owner, upload_id)


@router.post(
    "",
    status_code=202,
    response_description="accepted",
    response_model_exclude_unset=True,
    responses={200: {"description": "the existing job of this Idempotency-Key", "model": NewJob}},
)
async def create_job(
    request: Request, response: Response, caller: AnyCaller, ctx: Context, key: IdempotencyKey = None
) -> NewJob:
    """Create a job; a repeated request with the same Idempotency-Key returns the existing one."""
    if len(request.headers.getlist("idempotency-key")) > 1:
        raise validation.invalid_field("Idempotency-Key", "is given more than once")
    if not multipart.is_form(request):
        sent = await json_body.read_object(request)
        job = await _create_job(caller, ctx, key, JobBody(sent, sent))
    else:
        caller.require_scope("upload")
        with ctx.upload_spool.reserve(caller.owner):
            form = await multipart.read_form(request, ctx.upload_spool, max_files=MAX_FILES)
            try:
                job = await _create_job(caller, ctx, key, _parse_form(form))
            finally:
                form.close()
    response.status_code = 202 if job.is_new else 200
    response.headers["Location"] = f"{request.url.path}/{job.job_id}"  # with the prefix of the request
    return job


async def _create_job(caller: Caller, ctx: AppContext, key: str | None, body: JobBody) -> NewJob:
    is_large = validation.has_too_many_values(body.resolved, MAX_QUICK_VALUES)
    job = await json_body.run_apart(is_large, lambda: validation.parse_body(body.resolved, JobCreate))
    caller.resolve_owner(job.owner)
    entries = job.parse_entries(ctx.settings, ctx.providers)
    chain = [parsed.entry for parsed in entries]
    found = [_find_provider_error(ctx.providers, entry, caller) for entry in chain]
    errors = [{"field": f"chain[{n}].{error[0]}", "message": error[1]} for n, error in enumerate(found) if error]
    validation.raise_errors(errors)
    job_request = job.build_request(chain, ctx.settings, key, await body.compute_sha256())
    limits = caller.get_limits(ctx.settings)
    created, unchecked = await _check_and_store(ctx, job_request, entries, body, limits)
    log.info("job.created", job_id=created.job_id, prediction_id=created.prediction_id, is_new=created.is_new)
    checks = {"checked": not unchecked, "unchecked": unchecked} if created.is_new else {}
    return NewJob.model_validate({**asdict(created), **checks})


async def _check_and_store(
    ctx: AppContext, job_request: JobRequest, entries: Sequence[ParsedEntry], body: JobBody, limits: Mapping[str, int]
) -> tuple[CreatedJob, list[str]]:
    """Return the new or existing job, and the reasons of unchecked entries. Storing files has its own time limit."""

    def check_stored(conn: Connection) -> None:
        """Check limits and references before models are requested and files stored; limits again when the job is."""
        owner, errors = job_request.owner, []
        owner_limits.require(conn, owner, limits, **create.NEW_JOB)
        for parsed in entries:
            stored = [reference for reference in parsed.references if reference.file_id not in body.files]
            # Equal messages for files that do not exist and those of others: existence is not revealed.
            for missing in references.find_missing(conn, owner, stored):
                message = f"names {missing.label}, which {owner} does not have"
                errors.append(validation.field_error(f"{parsed.input_field}.{missing.path}", message))
        validation.raise_errors(errors)

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_SECONDS) as limit:
            if job_request.idempotency_key is not None:  # whether or not its files and models still exist
                existing = await ctx.database.transaction(lambda conn: create.find_existing_job(conn, job_request))
                if existing is not None:
                    return existing, []
            await ctx.database.transaction(check_stored)
            chain, unchecked = await job_inputs.check_inputs(ctx, job_request.kind, entries)
            if body.files:
                limit.reschedule(None)
                await body.store_files(ctx.upload_spool, job_request.owner)
                limit.reschedule(loop.time() + ANSWER_SECONDS)
            complete = replace(job_request, fallback_chain=chain)
            store = partial(
                create.create_job, settings=ctx.settings, providers=ctx.providers, request=complete, limits=limits
            )
            return await ctx.run_and_wake(store), unchecked
    except TimeoutError as error:
        raise problems.unavailable(f"no response within {ANSWER_SECONDS:g} s: retry") from error


def _find_provider_error(
    providers: Mapping[str, Provider], entry: FallbackEntry, caller: Caller
) -> tuple[str, str] | None:
    """Return the field of an entry that is wrong, and why."""
    name, provider = entry.provider, providers.get(entry.provider)
    if provider is None:
        return "provider", f"{to_storable(name, 60)!r} does not exist: use one of {', '.join(sorted(providers))}"
    if not provider.can_submit and provider.submit_setting is None:
        return "provider", f"{name} accepts no submissions"
    if not provider.can_submit:
        return "provider", f"{name} is not configured: set {provider.submit_setting} on the server"
    if caller.level is Level.OWNER and entry.model not in (AUTO_MODEL, *provider.models):
        return "model", "is not offered: GET /v1/models lists the models"  # an owner spends the application's money
    return None


def _parse_form(form: Form) -> JobBody:
    """Return the job in a form with its files. Raises Problem: 400 not JSON, 422 files and references differ."""
    if JOB_FIELD not in form.fields:
        raise validation.invalid_field(JOB_FIELD, "is required: the job as JSON")
    body = json_body.parse_object(form.fields[JOB_FIELD].encode())
    json_body.check_depth(body, JOB_FIELD)
    names = [name for name, _ in form.files]
    upload_ids = {name: ids.uuid7() for name in names}
    used: set[str] = set()
    resolved = _resolve_files(body, upload_ids, used)
    errors = [validation.field_error(name, "is not a field of the form") for name in form.fields if name != JOB_FIELD]
    errors += [validation.field_error(name, "is given more than once") for name in upload_ids if names.count(name) > 1]
    errors += [
        validation.field_error(name, f'is not referenced: write {{"file": "{name}"}} in the input')
        for name in upload_ids.keys() - used
    ]
    errors += [
        validation.field_error(JOB_FIELD, f"references the file {name!r}, which is not in the form")
        for name in used - upload_ids.keys()
    ]
    validation.raise_errors(errors)
    return JobBody(body, resolved, {upload_ids[name]: file for name, file in form.files}, names)


def _resolve_files(value: Any, upload_ids: Mapping[str, UUID], used: set[str]) -> Any:
    """Return the value with `{"upload": id}` for each `{"file": name}`; adds the names to `used`."""
    if isinstance(value, dict):
        name = value.get("file") if len(value) == 1 else None
        if isinstance(name, str):
            used.add(name)
            return {"upload": str(upload_ids[name])} if name in upload_ids else value
        return {key: _resolve_files(item, upload_ids, used) for key, item in value.items()}
    return [_resolve_files(item, upload_ids, used) for item in value] if isinstance(value, list) else value


def _hash_file(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
