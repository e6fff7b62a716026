"""GET /v1/jobs: lists jobs, and returns one with its variants, predictions, outputs, errors and events."""

import asyncio
import time
from functools import partial
from typing import Any, Final
from uuid import UUID

from db import events, jobs, outputs, predictions, renders
from db.connection import Connection, Row
from web.api.job_responses import EventPage, Job, ListedJob
from web.api.renders import build_variant
from web.api.responses import page_model
from web.http import query, visibility
from web.http.ids import PathId
from web.http.permissions import Caller
from web.http.router import Router
from web.services.context import AppContext
from web.services.dependencies import AnyCaller, Context

POLL_SECONDS: Final = 0.5  # while a request waits for a job

router: Final = Router(prefix="/jobs", tags=["jobs"])


@router.get("", response_model=page_model("JobPage", jobs=ListedJob), response_description="a page of jobs")
async def list_jobs(params: query.JobFilters, caller: AnyCaller, ctx: Context) -> Row:
    """Return a page of jobs, newest first."""
    filters = {**params.model_dump(exclude={"limit"}), "owner": caller.resolve_owner(params.owner)}
    rows = await ctx.database.transaction(lambda conn: jobs.list_page(conn, filters, params.limit + 1))
    page, next_id = query.split_page(rows, params.limit)
    jobs_shown = [{"job_id": row["id"], **ctx.visibility.filter_reason(caller.level, row)} for row in page]
    return {"jobs": jobs_shown, "next": next_id}


@router.get("/{job_id}/events", response_description="a page of events")
async def list_job_events(job_id: PathId, params: query.EventFilters, caller: AnyCaller, ctx: Context) -> EventPage:
    """Return a page of a job's events, oldest first."""

    def read_events(conn: Connection) -> list[Row]:
        caller.require_visible(jobs.get_with_render(conn, job_id), "job")
        hidden = visibility.list_hidden_events(caller.level)
        return events.list_page_by_job(conn, job_id, params.after, params.limit + 1, hidden)

    page, next_id = query.split_page(await ctx.database.transaction(read_events), params.limit)
    shown = [visibility.filter_event(caller.level, row) for row in page]
    return EventPage.model_validate({"job_id": job_id, "events": shown, "next": next_id})


@router.get("/{job_id}", response_description="the job")
async def get_job(job_id: PathId, params: query.WaitParameter, caller: AnyCaller, ctx: Context) -> Job:
    """Return a job with its variants, predictions, outputs and errors; with `wait`, once it is settled."""
    until = time.monotonic() + params.wait
    while True:
        job = await ctx.database.read(lambda conn: _build_job(conn, job_id, ctx, caller))
        if job.settled_at is not None or time.monotonic() >= until or ctx.feed.is_closed:
            return job
        await _wait_until_settled(ctx, job_id, until)


async def _wait_until_settled(ctx: AppContext, job_id: UUID, until: float) -> None:
    """Return when the job is settled, `until` (of time.monotonic()) has passed, or the server stops."""
    while not ctx.feed.is_closed and (seconds := min(POLL_SECONDS, until - time.monotonic())) > 0:
        await asyncio.sleep(seconds)
        if await ctx.database.transaction(lambda conn: jobs.is_settled(conn, job_id)):
            return


def _build_job(conn: Connection, job_id: UUID, ctx: AppContext, caller: Caller) -> Job:
    job = caller.require_visible(jobs.get_with_render(conn, job_id), "job")
    show = partial(ctx.visibility.filter_reason, caller.level)
    variants = [build_variant(row, ctx.asset_base) for row in renders.list_variants(conn, job_id)]
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
            {"prediction_id": row["id"], **_name_reason(show(row))} for row in predictions.list_by_job(conn, job_id)
        ],
        "outputs": [{"output_id": row["id"], **_name_reason(show(row))} for row in outputs.list_by_job(conn, job_id)],
        "errors": [{"job_id": job_id, **_name_reason(show(row))} for row in jobs.list_errors(conn, job_id)],
    }
    return Job.model_validate(fields)


def _name_reason(row: Row) -> Row:
    return {**row, "type": row["category"], "message": row["reason"]}
