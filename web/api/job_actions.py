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

log = logs.get(__name__)

Outcome = cancelling.Outcome | retrying.Outcome
Act = Callable[[Database, Settings, UUID, str], Outcome]
ACTOR = "api"


async def cancel(request: Request) -> Response:
    """Answer 200 when a job is cancelled, now or before, 409 when it is settled otherwise, 404 when there is none."""
    return await _steer(request, cancelling.cancel, 200)


async def retry(request: Request) -> Response:
    """Answer 202 when a job is taken up again, 409 with the reason when it is not, 404 when there is none."""
    return await _steer(request, retrying.retry, 202)


async def _steer(request: Request, act: Act, status: int) -> Response:
    at, caller = context.of(request), permissions.of(request)
    job_id = ids.read(request.path_params["job_id"], "job")

    def work(database: Database) -> Outcome | None:
        row = database.run(lambda conn: jobs.show(conn, job_id))
        if row is None or not caller.sees(row["owner"]):
            return None
        outcome = act(database, at.settings, job_id, ACTOR)
        at.relay.offer(*outcome.wakes)
        return outcome

    outcome = await at.threads.run(work)
    if outcome is None:
        raise ids.missing("job")
    if outcome.refused is not None:
        raise Problem(409, outcome.refused)
    log.info("job.steered", job_id=job_id, from_state=outcome.before, to_state=outcome.after)
    fields = {"job_id": job_id, "state": outcome.after, "was": outcome.before}
    replayed = {"replayed": outcome.replayed} if isinstance(outcome, retrying.Outcome) else {}
    return problems.answer(status, {**fields, **replayed})
