"""POST /v1/jobs/{job_id}/cancel and /retry: what an application may still change about a job."""

from collections.abc import Callable
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import jobs
from db.connection import Database
from moorage import logs
from moorage.settings import Settings
from tasks.jobs import cancel as cancelling
from tasks.jobs import retry as retrying
from web.http import ids, permissions, problems
from web.http.problems import Problem
from web.services import context

log = logs.get_logger(__name__)

ActionOutcome = cancelling.CancelOutcome | retrying.RetryOutcome
JobAction = Callable[[Database, Settings, UUID, str], ActionOutcome]
ACTOR = "api"


async def cancel_job(request: Request) -> Response:
    """Answer 200 when a job is cancelled, now or before, 409 when it is settled otherwise, 404 when there is none."""
    return await _apply_action(request, cancelling.cancel_job, 200)


async def retry_job(request: Request) -> Response:
    """Answer 202 when a job is taken up again, 409 with the reason when it is not, 404 when there is none."""
    return await _apply_action(request, retrying.retry_job, 202)


async def _apply_action(request: Request, act: JobAction, status: int) -> Response:
    at, caller = context.get_context(request), permissions.get_caller(request)
    job_id = ids.parse_id(request.path_params["job_id"], "job")

    def work(database: Database) -> ActionOutcome | None:
        row = database.run(lambda conn: jobs.get_with_render(conn, job_id))
        if row is None or not caller.can_see(row["owner"]):
            return None
        outcome = act(database, at.settings, job_id, ACTOR)
        at.relay.enqueue(*outcome.wakes)
        return outcome

    outcome = await at.database.run(work)
    if outcome is None:
        raise ids.not_found("job")
    if outcome.refused is not None:
        raise Problem(409, outcome.refused)
    log.info("job.steered", job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    fields = {"job_id": job_id, "state": outcome.after, "was": outcome.before}
    replayed = {"replayed": outcome.replayed} if isinstance(outcome, retrying.RetryOutcome) else {}
    return problems.json_response(status, {**fields, **replayed})
