"""Endpoints of the page: `/`, and below `/page/` its cards, actions and static files."""

import mimetypes
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import jinja2
from fastapi import APIRouter, Depends, Header, Request
from pydantic import field_validator
from starlette.responses import RedirectResponse, Response

from db.connection import Connection, Row
from db.reports import my_renders
from moorage.errors import Refused
from moorage.owner_tokens import Scope
from moorage.text import is_storable
from storage import urls
from web.api import jobs
from web.api import renders as api_renders
from web.api.renders import RenderBody
from web.http import problems, query
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.validation import PathId
from web.page import cards
from web.page.cards import CardState
from web.services.context import AppContext, Context

Q = TypeVar("Q", bound=query.BaseQuery)

HOME: Final = "/"
PAGE_PREFIX: Final = "/page/"
CONSOLE: Final = "/ops"
CARDS_PER_PAGE: Final = 24
router: Final = APIRouter(include_in_schema=False, redirect_slashes=False)
_FOLDER: Final = Path(__file__).parent
_STATIC: Final = {path.name: path.read_bytes() for path in sorted((_FOLDER / "static").iterdir())}
TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, auto_reload=False,
)  # fmt: skip

# Shown after an action, by `result` in the query.
RESULT_MESSAGES: Final = {
    "cancel": "Cancelled. Files that the provider still creates are not stored.",
    "retry": "Retrying.",
    "delete": "Deleted.",
    "limited": "Not retried: a limit of your account is reached. Try again later.",
    "refused": "This action is no longer possible: the job has changed.",
}
_ACTIONS: Final[dict[str, tuple[Scope, Callable[[UUID, Caller, AppContext], Awaitable[Any]]]]] = {
    "cancel": ("jobs", jobs.cancel_job),
    "retry": ("jobs", jobs.retry_job),
    "mark": ("jobs", partial(api_renders.update_render, body=RenderBody(favourite=True))),
    "unmark": ("jobs", partial(api_renders.update_render, body=RenderBody(favourite=False))),
    "delete": ("delete", api_renders.delete_render),
}
_PROBLEMS: Final = {
    401: ("Your session has expired", "Request a new link in your application."),
    404: ("Not found", "This page does not exist, or what it showed was deleted."),
    503: ("Temporarily unavailable", "Nothing is lost. Try again in a moment."),
}


class CardQuery(query.PageQuery):
    """The query of the page. Unknown names are ignored."""

    model_config = query.IGNORE_UNKNOWN

    kind: str = ""
    state: CardState | Literal[""] = ""
    style: str = ""
    project_id: str = ""
    result: str = ""

    @field_validator("state", mode="before")
    @classmethod
    def _ignore_unknown(cls, value: str) -> str:
        """Ignore unknown states: a link may be older than the present names."""
        return value if value in cards.JOB_STATES else ""

    @property
    def filters(self) -> dict[str, str]:
        return {"kind": self.kind, "state": self.state, "style": self.style, "project_id": self.project_id}


def is_page_path(path: str) -> bool:
    return path in (HOME, CONSOLE) or path.startswith((PAGE_PREFIX, f"{CONSOLE}/"))


async def get_viewer(request: Request, ctx: Context) -> Caller | None:
    """Return the owner whose session it is, None without a valid one. Raises Problem: 403 from another origin, 503."""
    try:
        caller = await ctx.authenticator.authenticate(request.scope)
        return replace(caller, client="page") if caller.owner is not None else None
    except Problem as problem:
        if problem.status != 401:
            raise
        return None


def parse_query(request: Request, model: type[Q]) -> Q:
    """Return the query of a page. Raises Problem: 404 for values that no link has."""
    values = {name: value for name, value in request.query_params.items() if value}
    try:
        if all(is_storable(value) for value in values.values()):
            return model.model_validate(values)
    except ValueError:
        pass
    raise problems.not_found("page")


async def parse_card_query(request: Request) -> CardQuery:
    return parse_query(request, CardQuery)


Viewer = Annotated[Caller | None, Depends(get_viewer)]
Cards = Annotated[CardQuery, Depends(parse_card_query)]


@router.api_route(HOME, methods=["GET", "HEAD"])
async def get_page(
    request: Request, viewer: Viewer, ctx: Context, x_fragment: Annotated[str | None, Header()] = None
) -> Response:
    """Return the page of the caller's owner, or the sign-in page without a session."""
    if viewer is None:
        return html_response(ctx, "enter.html", public_url=ctx.settings.public_url)
    params = await parse_card_query(request)

    def read_page(conn: Connection) -> tuple[list[Row], str, Row, int]:
        page, next_id = _list_cards(conn, viewer, params, ctx)
        if x_fragment == "cards":
            return page, next_id, {}, 0
        owner = str(viewer.owner)
        count = my_renders.count_cards(conn, owner, _filter_values(params))
        return page, next_id, my_renders.list_filter_choices(conn, owner), count

    page, next_id, choices, count = await ctx.database.read(read_page)
    more = cards.encode_filters(params.filters, before=next_id) if next_id else ""
    variables: dict[str, Any] = {"cards": page, "more": more, "query": cards.encode_filters(params.filters)}
    if x_fragment == "cards":
        return html_response(ctx, "cards.html", **variables)
    return html_response(
        ctx,
        "page.html",
        **variables,
        filters=params.filters,
        filter_summary=cards.summarize_filters(params.filters),
        kinds=cards.KINDS,
        states=cards.JOB_STATES,
        **choices,
        count=count,
        max_count=my_renders.MAX_COUNT,
        message=RESULT_MESSAGES.get(params.result, ""),
    )


@router.api_route(f"{PAGE_PREFIX}jobs/{{job_id}}", methods=["GET", "HEAD"])
async def get_card(job_id: PathId, viewer: Viewer, params: Cards, ctx: Context) -> Response:
    """Return a job's card; 204 if it is filtered out, 404 for an unknown job, 401 without a session."""
    if viewer is None:
        raise Problem(401, "session expired: open the page with a new link")

    def read_card(conn: Connection) -> Row | None:
        owner = str(viewer.owner)
        row = my_renders.get_card(conn, owner, job_id, _filter_values(params))
        if row is None and my_renders.get_card(conn, owner, job_id) is None:
            raise problems.not_found("job")
        return _build_card(row, ctx.list_variants(conn, [job_id])[job_id], viewer, ctx) if row else None

    card = await ctx.database.read(read_card)
    if card is None:
        return Response(status_code=204, headers=problems.NO_STORE)
    return html_response(ctx, "card.html", card=card, query=cards.encode_filters(params.filters))


@router.post(f"{PAGE_PREFIX}jobs/{{job_id}}/{{action}}")
async def post_action(job_id: PathId, action: str, viewer: Viewer, params: Cards, ctx: Context) -> Response:
    """Act on a job or its render as the API does, then redirect (303) to the page, which shows the result."""
    if viewer is None:
        return RedirectResponse(HOME, 303)
    if action not in _ACTIONS:
        raise problems.not_found("action")
    scope, act = _ACTIONS[action]
    viewer.require_scope(scope)
    if await ctx.database.transaction(lambda conn: my_renders.get_card(conn, str(viewer.owner), job_id)) is None:
        raise problems.not_found("job")
    result = action
    try:
        await act(job_id, viewer, ctx)
    except (Problem, Refused) as error:
        if error.status >= 500:
            raise
        result = "limited" if error.status == 429 else "refused"
    # `params` are those of the page that the form is on
    query_text = cards.encode_filters(params.filters, result=result)
    return RedirectResponse(f"{HOME}?{query_text}", 303, problems.NO_STORE)


@router.api_route(f"{PAGE_PREFIX}{{name}}", methods=["GET", "HEAD"])
async def get_static_file(name: str) -> Response:
    if name not in _STATIC:
        raise problems.not_found("file")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(_STATIC[name], media_type=kind, headers={"Cache-Control": "no-cache", **SECURITY_HEADERS})


# `same-origin` and not `no-referrer`, with which browsers send `Origin: null` with the page's own forms: a 403.
SECURITY_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}


def _filter_values(params: CardQuery) -> dict[str, Any]:
    values = {name: value or None for name, value in params.filters.items()}
    return {
        **values,
        "shown": values["state"],
        "states": list(cards.JOB_STATES[params.state]) if params.state else None,
    }


def _list_cards(conn: Connection, viewer: Caller, params: CardQuery, ctx: AppContext) -> tuple[list[Row], str]:
    """Return a page of cards and the id of the last one if there are more, else an empty string."""
    rows = my_renders.list_cards(conn, str(viewer.owner), _filter_values(params), params.before, CARDS_PER_PAGE + 1)
    page, next_id = query.split_page(rows, CARDS_PER_PAGE)
    variants = ctx.list_variants(conn, (row["id"] for row in page))
    return [_build_card(row, variants[row["id"]], viewer, ctx) for row in page], str(next_id or "")


def _build_card(row: Row, variants: list[Row], viewer: Caller, ctx: AppContext) -> Row:
    """Return a card with the reason that its owner sees, and the actions that the token permits."""
    state, (category, reason) = "dead", row["why"][0] if row["why"] else (None, None)
    if reason is None:
        state, category, reason = row["state"], row["category"], row["reason"]
    why = ctx.visibility.show_reason(viewer.level, state, category, reason)
    scopes = [scope for scope, _ in _ACTIONS.values() if viewer.has_scope(scope)]
    return cards.build_card({**row, "reason": why}, variants, scopes)


def build_problem_page(request: Request, problem: Problem) -> Response:
    """Return a problem as a page for people, who can do nothing about an operator's detail."""
    ctx: AppContext = request.app.state.context
    title, detail = _PROBLEMS.get(problem.status, ("This did not work", f"{problem.detail.capitalize()}."))
    response = html_response(ctx, "problem.html", status_code=problem.status, title=title, detail=detail)
    response.headers.update(problem.headers)
    return response


def render_template(name: str, **variables: Any) -> str:
    return TEMPLATES.get_template(name).render(**variables)


def html_response(ctx: AppContext, template: str, *, status_code: int = 200, **variables: Any) -> Response:
    body = render_template(template, **variables)
    bases = [ctx.asset_base, *([urls.get_bucket_url(ctx.settings)] if ctx.settings.assets == "signed" else ())]
    files = " ".join(["'self'", *(f"{base.scheme}://{base.netloc}" for base in map(urlsplit, bases))])
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src {files};"
        f" media-src {files}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {**problems.NO_STORE, "Content-Security-Policy": policy, **SECURITY_HEADERS}
    return Response(body, status_code, media_type="text/html", headers=headers)
