"""POST /v1/jobs/{job_id}/cancel and /retry."""

from collections.abc import Callable
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import jobs
from db.connection import Database
from moorage import logs
from moorage.settings import Settings
from tasks.jobs import cancel, retry
from tasks.jobs.cancel import ActionOutcome
from web.http import ids, permissions, problems
from web.http.problems import Problem
from web.services import context

log = logs.get_logger(__name__)

ACTOR: Final = "api"


async def cancel_job(request: Request) -> Response:
    """Cancel a job; a job that is already cancelled is unchanged."""
    job_id, outcome = await _apply_action(request, cancel.cancel_job)
    log.info("job.cancelled", job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    return problems.json_response(200, {"job_id": job_id, "state": outcome.after, "was": outcome.before})


async def retry_job(request: Request) -> Response:
    """Retry a failed or partial job."""
    job_id, outcome = await _apply_action(request, retry.retry_job)
    log.info("job.retried", job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    fields = {"job_id": job_id, "state": outcome.after, "was": outcome.before, "replayed": outcome.replayed}
    return problems.json_response(202, fields)


async def _apply_action(
    request: Request, action: Callable[[Database, Settings, UUID, str], ActionOutcome]
) -> tuple[UUID, ActionOutcome]:
    """Apply an action to the job in the path. Raises Problem: 404 no such job, 409 refused in its present state."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    job_id = ids.parse_id(request.path_params["job_id"], "job")

    def apply(database: Database) -> ActionOutcome:
        caller.require_visible(database.run(lambda conn: jobs.get_with_render(conn, job_id)), "job")
        outcome = action(database, ctx.settings, job_id, ACTOR)
        ctx.relay.enqueue(*outcome.wakes)
        return outcome

    outcome = await ctx.database.run(apply)
    if outcome.refused is not None:
        raise Problem(409, outcome.refused)
    return job_id, outcome
