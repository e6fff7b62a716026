"""POST /v1/jobs: have something generated. Everything is refused before anything is stored."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from db.connection import Connection, Database
from moorage import logs
from moorage.model import FallbackEntry, JobRequest
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import create
from tasks.jobs.create import CreatedJob, ForeignProject
from tasks.predictions import references
from web.api import job_files, job_inputs, job_schema
from web.api.job_files import AttachedFiles
from web.api.job_inputs import CheckedJob
from web.api.job_schema import JobCreate
from web.http import json_body, permissions, problems, validation
from web.http.problems import Problem
from web.services import context, multipart
from web.services.database import ANSWER_SECONDS

log = logs.get_logger(__name__)


async def create_job(request: Request) -> Response:
    """Answer 202 with the new job, 200 with the one that an equal request under the same Idempotency-Key made."""
    at = context.get_context(request)
    if not multipart.is_form(request):
        body = await json_body.read_object(request)
        return await _answer(request, at, body, body, AttachedFiles())
    with at.upload_spool.reserve(permissions.get_caller(request).owner):
        form = await multipart.read_form(request, at.upload_spool, max_files=job_files.MAX_FILES)
        try:
            return await _answer(request, at, *job_files.parse_job_form(form))
        finally:
            form.close()


async def _answer(
    request: Request, at: context.AppContext, said: Mapping[str, Any], body: dict[str, Any], files: AttachedFiles
) -> Response:
    """Answer an order; `said` is the body as it was written, before its files were given ids."""
    key = job_schema.parse_idempotency_key(request.headers.getlist("idempotency-key"))
    wished = job_schema.parse_job(body)
    permissions.get_caller(request).resolve_owner(wished.owner)
    entries = job_schema.build_chain(wished, at.settings)
    _check_providers(at.providers, entries)
    wish = job_schema.build_request(
        wished, entries, at.settings, key, job_schema.request_hash(said, await files.compute_digests())
    )
    made, checked = await _take(at, wished, wish, files)
    log.info("job.ordered", job_id=made.job_id, prediction_id=made.prediction_id, is_new=made.is_new)
    location = f"{request.url.path}/{made.job_id}"  # with the prefix it was asked by
    return problems.json_response(202 if made.is_new else 200, _fields(made, checked), {"Location": location})


async def _take(
    at: context.AppContext, wished: JobCreate, wish: JobRequest, files: AttachedFiles
) -> tuple[CreatedJob, CheckedJob]:
    """Return the job, known or new; the time of everything but the keeping of files is bounded as one."""
    deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
    try:
        async with asyncio.timeout_at(deadline) as limit:
            known = await _known(at, wish)
            if known is not None:
                return known, CheckedJob(wish, [])
            await at.database.run(lambda database: database.run(lambda conn: _check_files(conn, wished, wish, files)))
            checked = await job_inputs.check_inputs(at, wish)
            if files.files:
                limit.reschedule(None)  # keeping has limits of its own
                checked = CheckedJob(await files.store(at, checked.wish), checked.unchecked)
                limit.reschedule(asyncio.get_running_loop().time() + ANSWER_SECONDS)
            return await at.database.run(lambda database: _order(database, at, checked.wish)), checked
    except TimeoutError as error:
        raise problems.unavailable(f"there was no answer within {ANSWER_SECONDS:g} s: send it again") from error


def _fields(made: CreatedJob, checked: CheckedJob) -> dict[str, Any]:
    fields = {
        "job_id": made.job_id,
        "prediction_id": made.prediction_id,
        "state": made.state,
        "is_new": made.is_new,
    }
    if made.is_new:
        fields |= {"checked": not checked.unchecked, "unchecked": checked.unchecked}
    return fields


async def _known(at: context.AppContext, wish: JobRequest) -> CreatedJob | None:
    """Return the job of an equal order: it is found again whatever became of files and providers since."""
    if wish.idempotency_key is None:
        return None
    try:
        return await at.database.run(lambda database: database.run(lambda conn: create.find_existing_job(conn, wish)))
    except create.IdempotencyConflict as error:
        raise Problem(409, str(error)) from error


def _order(database: Database, at: context.AppContext, wish: JobRequest) -> CreatedJob:
    try:
        made = create.create_job(database, at.settings, at.providers, wish)
    except create.IdempotencyConflict as error:
        raise Problem(409, str(error)) from error
    except ForeignProject as error:
        raise validation.invalid_field("project_id", str(error)) from error
    at.relay.enqueue(*made.wakes)
    return made


def _check_files(conn: Connection, wished: JobCreate, wish: JobRequest, coming: AttachedFiles) -> None:
    """Refuse files that do not exist or are another owner's, in the same words: ids are not to be tried out."""
    errors = []
    for n, entry in enumerate(wish.fallback_chain):
        named = [r for r in references.find_references(dict(entry.input)) if str(r.file_id) not in coming.files]
        field = job_schema.input_field(wished, n)
        for gone in references.find_missing(conn, wish.owner, named):
            errors.append(
                validation.field_error(f"{field}.{gone.path}", f"names {gone.label}, which {wish.owner} does not have")
            )
    if errors:
        raise validation.invalid_fields(errors)


def _check_providers(providers: Mapping[str, Provider], entries: tuple[FallbackEntry, ...]) -> None:
    errors = [
        {"field": f"chain[{n}].provider", "message": why}
        for n, entry in enumerate(entries)
        if (why := _why_not(providers, entry.provider))
    ]
    if errors:
        raise validation.invalid_fields(errors)


def _why_not(providers: Mapping[str, Provider], name: str) -> str | None:
    provider = providers.get(name)
    if provider is None:
        return f"{to_storable(name, 60)!r} does not exist: write one of {', '.join(sorted(providers))}"
    if provider.can_submit:
        return None
    if provider.submit_setting is None:
        return f"{name} takes no orders from moorage"
    return f"{name} cannot be asked: set {provider.submit_setting} where moorage runs"
