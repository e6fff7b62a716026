"""POST /v1/jobs/{job_id}/cancel and /retry."""

import functools
from collections.abc import Callable
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends
from pydantic import Field

from db import jobs
from db.connection import Database
from moorage import logs
from moorage.settings import Settings
from tasks.jobs import cancel, retry
from tasks.jobs.cancel import ActionOutcome
from web.api.bulk import MAX_IDS, RowId, apply_to_each
from web.api.job_responses import JobStateView, RetryView
from web.api.responses import BulkResult
from web.http.ids import PathId
from web.http.json_body import JsonBody
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.router import Router
from web.http.validation import Body
from web.services.context import AppContext
from web.services.dependencies import AnyCaller, Context

log = logs.get_logger(__name__)

router: Final = Router(prefix="/jobs", tags=["jobs"])

ACTOR: Final = "api"


@router.post("/{job_id}/cancel", response_description="cancelled, now or before")
async def cancel_job(job_id: PathId, caller: AnyCaller, ctx: Context) -> JobStateView:
    """Cancel a job; a job that is already cancelled is unchanged."""
    outcome = await _apply_action(job_id, caller, ctx, cancel.cancel_job)
    log.info("job.cancelled", job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    return JobStateView.model_validate({"job_id": job_id, "state": outcome.after, "was": outcome.before})


class JobIdsBody(Body):
    job_ids: Annotated[list[RowId], Field(min_length=1, max_length=MAX_IDS)]


@router.post("/cancel", response_description="what became of each job")
async def cancel_jobs(
    caller: AnyCaller, ctx: Context, body: Annotated[JobIdsBody, Depends(JsonBody(JobIdsBody))]
) -> BulkResult:
    """Cancel jobs, each in a transaction of its own; repeating the request is safe."""
    return await apply_to_each(body.job_ids, lambda job_id: cancel_job(job_id, caller, ctx))


@router.post("/{job_id}/retry", status_code=202, response_description="retried")
async def retry_job(job_id: PathId, caller: AnyCaller, ctx: Context) -> RetryView:
    """Retry a failed or partial job."""
    action = functools.partial(retry.retry_job, limits=caller.get_limits(ctx.settings))
    outcome = await _apply_action(job_id, caller, ctx, action)
    log.info("job.retried", job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    fields = {"job_id": job_id, "state": outcome.after, "was": outcome.before, "replayed": outcome.replayed}
    return RetryView.model_validate(fields)


async def _apply_action(
    job_id: UUID, caller: Caller, ctx: AppContext, action: Callable[[Database, Settings, UUID, str], ActionOutcome]
) -> ActionOutcome:
    """Apply an action to a job. Raises Problem: 404 no such job, 409 refused in its present state, 429."""

    def apply(database: Database) -> ActionOutcome:
        caller.require_visible(database.run(lambda conn: jobs.get_with_render(conn, job_id)), "job")
        outcome = action(database, ctx.settings, job_id, ACTOR)
        ctx.relay.enqueue(*outcome.wakes)
        return outcome

    outcome = await ctx.database.run(apply)
    if outcome.refused is not None:
        raise Problem(409, outcome.refused)
    return outcome
