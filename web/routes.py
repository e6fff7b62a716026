"""The route table: every address of the API, the one list that serving and describing it are made from."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from web import assets, jobs, predictions, projects, renders

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address, below a prefix."""

    method: str
    path: str
    endpoint: Endpoint


OPERATIONS: Final = (
    Operation("POST", "/predictions", predictions.register),
    Operation("GET", "/jobs", jobs.index),
    Operation("GET", "/jobs/{job_id}", jobs.show),
    Operation("GET", "/jobs/{job_id}/events", jobs.history),
    Operation("GET", "/renders", renders.index),
    Operation("GET", "/renders/{render_id}", renders.show),
    Operation("DELETE", "/renders/{render_id}", renders.delete),
    Operation("GET", "/projects/{project_id}", projects.show),
    Operation("GET", "/assets/renders/{render_id}/{name}", assets.show),
    Operation("OPTIONS", "/assets/renders/{render_id}/{name}", assets.preflight),
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
