"""/v1/jobs: lists jobs, returns one with its variants, predictions, outputs, errors and events; cancels and retries."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from db import events, jobs, outputs, predictions
from db.connection import Connection, Database, Row
from moorage import logs
from moorage.errors import Refused
from moorage.settings import Settings
from tasks.jobs import cancel, replay
from tasks.jobs.cancel import ActionOutcome
from web.api.job_views import EventPage, Job, JobStateView, ListedJob, RetryView
from web.api.responses import BulkResult, RefusedRequest, page_model
from web.http import query, visibility
from web.http.json_body import Json
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.query import EventQuery, Filters, JobQuery, WaitQuery
from web.http.router import Router
from web.http.validation import Body, PathId, RowId
from web.services.context import AnyCaller, AppContext, Context

log = logs.get_logger(__name__)

MAX_IDS: Final = 100  # of one bulk operation
POLL_SECONDS: Final = 0.5  # while a request waits for a job

router: Final = Router(prefix="/jobs", tags=["jobs"])


@router.get("", response_model=page_model("JobPage", jobs=ListedJob), response_description="a page of jobs")
async def list_jobs(params: Filters[JobQuery], caller: AnyCaller, ctx: Context) -> Row:
    """Return a page of jobs, newest first."""
    filters = {**params.model_dump(exclude={"limit"}), "owner": caller.resolve_owner(params.owner)}
    rows = await ctx.database.transaction(lambda conn: jobs.list_page(conn, filters, params.limit + 1))
    page, next_id = query.split_page(rows, params.limit)
    jobs_shown = [{"job_id": row["id"], **ctx.visibility.filter_reason(caller.level, row)} for row in page]
    return {"jobs": jobs_shown, "next": next_id}


@router.get("/{job_id}/events", response_description="a page of events")
async def list_job_events(job_id: PathId, params: Filters[EventQuery], caller: AnyCaller, ctx: Context) -> EventPage:
    """Return a page of a job's events, oldest first."""

    def read_events(conn: Connection) -> list[Row]:
        caller.require_visible(jobs.get_with_render(conn, job_id), "job")
        hidden = visibility.list_hidden_events(caller.level)
        return events.list_page_by_job(conn, job_id, params.after, params.limit + 1, hidden)

    page, next_id = query.split_page(await ctx.database.transaction(read_events), params.limit)
    shown = [visibility.filter_event(caller.level, row) for row in page]
    return EventPage.model_validate({"job_id": job_id, "events": shown, "next": next_id})


@router.get("/{job_id}", response_description="the job")
async def get_job(job_id: PathId, params: Filters[WaitQuery], caller: AnyCaller, ctx: Context) -> Job:
    """Return a job with its variants, predictions, outputs and errors; with `wait`, once it is settled."""
    until = time.monotonic() + params.wait
    job = await ctx.database.read(lambda conn: _build_job(conn, job_id, ctx, caller))
    with ctx.waits.reserve(caller.owner) as is_reserved:
        while is_reserved and job.settled_at is None and time.monotonic() < until and not ctx.feed.is_closed:
            while not ctx.feed.is_closed and (seconds := min(POLL_SECONDS, until - time.monotonic())) > 0:
                await asyncio.sleep(seconds)
                if await ctx.database.transaction(lambda conn: jobs.is_settled(conn, job_id)):
                    break
            job = await ctx.database.read(lambda conn: _build_job(conn, job_id, ctx, caller))
    return job


def _build_job(conn: Connection, job_id: UUID, ctx: AppContext, caller: Caller) -> Job:
    job = caller.require_visible(jobs.get_with_render(conn, job_id), "job")
    show = partial(ctx.visibility.filter_reason, caller.level)
    variants = ctx.list_variants(conn, [job_id])[job_id]
    is_published = job["render_id"] is not None and job["deleted_at"] is None
    fields: dict[str, Any] = {
        **show(job),
        "job_id": job_id,
        "policy": job["partial"],
        "variants_asked": job["variants"],
        "render_id": job["render_id"] if is_published else None,
        "published_at": job["published_at"] if is_published else None,
        "variants_created": len(variants),
        "variants": variants,
        "predictions": [
            {"prediction_id": row["id"], **_add_error_fields(show(row))}
            for row in predictions.list_by_job(conn, job_id)
        ],
        "outputs": [
            {"output_id": row["id"], **_add_error_fields(show(row))} for row in outputs.list_by_job(conn, job_id)
        ],
        "errors": [{"job_id": job_id, **_add_error_fields(show(row))} for row in jobs.list_errors(conn, job_id)],
    }
    return Job.model_validate(fields)


def _add_error_fields(row: Row) -> Row:
    return {**row, "type": row["category"], "message": row["reason"]}


@router.post("/{job_id}/cancel", response_description="cancelled, now or before")
async def cancel_job(job_id: PathId, caller: AnyCaller, ctx: Context) -> JobStateView:
    """Cancel a job; a job that is already cancelled is unchanged."""
    return JobStateView(**await _apply_action(job_id, caller, ctx, "job.cancelled", cancel.cancel_job))


class JobIdsBody(Body):
    job_ids: Annotated[list[RowId], Field(min_length=1, max_length=MAX_IDS)]


@router.post("/cancel", response_description="what became of each job")
async def cancel_jobs(caller: AnyCaller, ctx: Context, body: Json[JobIdsBody]) -> BulkResult:
    """Cancel jobs, each in a transaction of its own; repeating the request is safe."""
    return await apply_to_each(body.job_ids, lambda job_id: cancel_job(job_id, caller, ctx))


@router.post("/{job_id}/retry", status_code=202, response_description="retried")
async def retry_job(job_id: PathId, caller: AnyCaller, ctx: Context) -> RetryView:
    """Retry a failed or partial job."""
    action = partial(replay.retry_job, limits=caller.get_limits(ctx.settings))
    return RetryView(**await _apply_action(job_id, caller, ctx, "job.retried", action))


async def _apply_action(
    job_id: UUID, caller: Caller, ctx: AppContext, event: str,
    action: Callable[[Database, Settings, UUID, str], ActionOutcome],
) -> Row:  # fmt: skip
    """Return the fields of the response. Raises Problem: 404 no such job, 409 refused in its present state, 429."""

    def apply(database: Database) -> ActionOutcome:
        caller.require_visible(database.run(lambda conn: jobs.get_with_render(conn, job_id)), "job")
        return action(database, ctx.settings, job_id, caller.client)

    outcome = await ctx.run_and_wake(apply)
    if outcome.refused is not None:
        raise Problem(409, outcome.refused)
    log.info(event, job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    return {"job_id": job_id, "state": outcome.after, "was": outcome.before, "replayed": outcome.replayed}


async def apply_to_each(row_ids: Sequence[UUID], operate: Callable[[UUID], Awaitable[Any]]) -> BulkResult:
    """Return which rows were changed, now or before, and why the others were not. Raises Problem: 503."""
    changed, refused = [], []
    for row_id in dict.fromkeys(row_ids):
        try:
            await operate(row_id)
        except (Problem, Refused) as error:
            if error.status == 503:  # the rest would fail, too: the request is repeated
                raise
            refused.append(RefusedRequest(id=row_id, status=error.status, message=str(error)))
        else:
            changed.append(row_id)
    return BulkResult(changed=changed, refused=refused)
