"""POST /v1/predictions: register what an application started at a provider."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from db import jobs
from db.connect import Database
from moorage import logs
from moorage.text import storable
from providers.base import Provider
from tasks import register as registration
from tasks.register import NotTheirs, Registered
from web import asked, bodies, desk, problems

log = logs.get(__name__)


async def register(request: Request) -> Response:
    """Answer 201 with the new job, 200 with the one whose prediction was registered before: that one stands."""
    at = desk.of(request)
    wanted = asked.read(await bodies.read_object(request), partial=at.settings.partial)
    provider = _provider(at.providers, wanted.provider)

    def work(database: Database) -> tuple[Registered, str]:
        try:
            made = registration.register(database, at.settings, provider, wanted)
        except NotTheirs as error:
            raise asked.wrong("project_id", str(error)) from error
        at.relay.offer(*made.wakes)
        return made, "open" if made.is_new else _state(database, made)

    made, state = await at.threads.run(work)
    log.info("prediction.registered", job_id=made.job_id, prediction_id=made.prediction_id, is_new=made.is_new)
    fields = {
        "job_id": made.job_id,
        "prediction_id": made.prediction_id,
        "provider": wanted.provider,
        "external_id": wanted.external_id,
        "state": state,
        "is_new": made.is_new,
    }
    location = f"{request.url.path.removesuffix('/predictions')}/jobs/{made.job_id}"  # with the prefix it was asked by
    return problems.answer(201 if made.is_new else 200, fields, {"Location": location})


def _state(database: Database, made: Registered) -> str:
    row = database.run(lambda conn: jobs.show(conn, made.job_id))
    if row is None:
        raise LookupError(f"prediction {made.prediction_id} has no job")
    return str(row["state"])


def _provider(providers: Mapping[str, Provider], name: str) -> Provider:
    provider = providers.get(name)
    if provider is None:
        raise asked.wrong("provider", f"{storable(name, 60)!r} does not exist: write one of {_names(providers)}")
    if not provider.enabled and not provider.can_poll:
        raise asked.wrong("provider", f"{name} cannot be heard of: set {provider.enabled_by} where moorage runs")
    return provider


def _names(providers: Mapping[str, Provider]) -> str:
    return ", ".join(sorted(providers))
