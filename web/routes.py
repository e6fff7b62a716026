"""All routes of the API, below both prefixes."""

import functools
import re
from typing import Final, cast

from fastapi import APIRouter
from fastapi.params import Depends
from fastapi.routing import APIRoute

from web.api import (
    assets,
    events,
    job_create,
    jobs,
    models,
    operator_actions,
    operator_reads,
    owners,
    projects,
    registrations,
    renders,
    scenes,
    tokens,
    uploads,
)
from web.http import problems, query
from web.http.router import PROBLEM_RESPONSES
from web.services import context

PREFIXES: Final = ("/v1", "/api/v1")
_PROTECTED: Final = (
    registrations, job_create, jobs, models, renders, uploads, projects, scenes, events, tokens, operator_actions,
    operator_reads, owners,
)  # fmt: skip
_AUTHENTICATE: Final = Depends(context.authenticate)
_CHECKS: Final = [Depends(query.check_names), Depends(problems.add_headers)]


@functools.cache
def build_router() -> APIRouter:
    """Return the routes below each prefix; the OpenAPI document has the first. All but files require a token."""
    router = APIRouter(responses=PROBLEM_RESPONSES)
    for prefix in PREFIXES:
        in_schema = prefix == PREFIXES[0]
        for public in (assets.router, operator_reads.public_router):  # first: every file of a page is a request
            public.add_routes(router, prefix, _CHECKS, in_schema=in_schema)
        for module in _PROTECTED:
            module.router.add_routes(router, prefix, [_AUTHENTICATE, *_CHECKS], in_schema=in_schema)
    _exclude_actions(cast(list[APIRoute], router.routes))
    return router


def _exclude_actions(routes: list[APIRoute]) -> None:
    """Have GET /jobs/cancel return 405: it is the address of an action, not of a job with that id."""
    actions = {route.path for route in routes if "{" not in route.path}
    for route in routes:
        if "{" in route.path and (taken := sorted(filter(route.path_regex.match, actions))):
            route.path_regex = re.compile(f"(?!(?:{'|'.join(taken)})$){route.path_regex.pattern}")


def is_public_path(path: str) -> bool:
    """Return True for paths of files, which have no token: a render's id cannot be guessed."""
    return path.startswith(tuple(f"{prefix}/assets/" for prefix in PREFIXES))
