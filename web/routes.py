"""The route table: every address of the API, the one list that serving and describing it are made from."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from web import assets, jobs, predictions, projects, queries, renders
from web.queries import Query

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address, below a prefix: what it takes, and what its answers other than problems mean."""

    method: str
    path: str
    endpoint: Endpoint
    answers: Mapping[int, str]
    query: type[Query] | None = None
    takes_body: bool = False


_FILE: Final = "/assets/renders/{render_id}/{name}"
_FILE_ANSWERS: Final = {
    200: "the file",
    206: "the part that was asked for",
    302: "where the file is stored",
    304: "not changed",
}

OPERATIONS: Final = (
    Operation(
        "POST",
        "/predictions",
        predictions.register,
        {201: "registered", 200: "registered before: that one stands"},
        takes_body=True,
    ),
    Operation("GET", "/jobs", jobs.index, {200: "a page of jobs"}, queries.Jobs),
    Operation("GET", "/jobs/{job_id}", jobs.show, {200: "the job"}),
    Operation("GET", "/jobs/{job_id}/events", jobs.history, {200: "a page of events"}, queries.History),
    Operation("GET", "/renders", renders.index, {200: "a page of renders"}, queries.Renders),
    Operation("GET", "/renders/{render_id}", renders.show, {200: "the render"}),
    Operation("DELETE", "/renders/{render_id}", renders.delete, {204: "deleted, now or before"}),
    Operation("GET", "/projects/{project_id}", projects.show, {200: "the project"}),
    Operation("GET", _FILE, assets.show, _FILE_ANSWERS),
    Operation("OPTIONS", _FILE, assets.preflight, {204: "what another origin may send"}),
)


PREFIXES: Final = ("/v1", "/api/v1")


def is_open(path: str) -> bool:
    """Return whether an address is answered without the token."""
    return path.startswith(tuple(prefix + assets.PREFIX for prefix in PREFIXES))


def under(prefix: str) -> list[Route]:
    """Return a route for every address, one for all its methods, so that a 405 names each of them."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation.endpoint
    return [Route(prefix + path, _by_method(taken), methods=list(taken)) for path, taken in paths.items()]


def _by_method(taken: dict[str, Endpoint]) -> Endpoint:
    async def answer(request: Request) -> Response:
        return await taken["GET" if request.method == "HEAD" else request.method](request)

    return answer
