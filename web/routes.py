"""All routes of the API, below both prefixes."""

from typing import Final

from fastapi import APIRouter
from fastapi.params import Depends

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
_CHECKS: Final = [Depends(query.reject_duplicates), Depends(problems.add_headers)]


def build_router() -> APIRouter:
    """Return the routes below each prefix; the OpenAPI document has the first. All but files require a token."""
    router = APIRouter(responses=PROBLEM_RESPONSES)
    for prefix in PREFIXES:
        in_schema = prefix == PREFIXES[0]
        for public in (assets.router, operator_reads.public_router):  # first: every file of a page is a request
            public.add_routes(router, prefix, _CHECKS, in_schema=in_schema)
        for module in _PROTECTED:
            module.router.add_routes(router, prefix, [_AUTHENTICATE, *_CHECKS], in_schema=in_schema)
    return router


def is_public_path(path: str) -> bool:
    """Return True for paths of files, which have no token: a render's id cannot be guessed."""
    return path.startswith(tuple(f"{prefix}/assets/" for prefix in PREFIXES))
