"""Signs operators in, and renders every page of the console and every problem below `/ops`."""

import base64
import binascii
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import RedirectResponse, Response

from db import pauses
from db.connection import Row
from moorage.text import is_storable
from web.console import formats
from web.http import json_body, problems, query
from web.http.permissions import Caller, Level
from web.http.problems import Problem
from web.page import views
from web.services import authentication
from web.services.context import AppContext, Context

Q = TypeVar("Q", bound=query.BaseQuery)
router: Final = APIRouter(include_in_schema=False, redirect_slashes=False, prefix=views.CONSOLE)
SESSION_SECONDS: Final = 12 * 3600  # a revoked token ends its sessions at once
MAX_FIELDS: Final = 1000
PAGES: Final = (
    "", "dead-letters", "jobs", "predictions", "deliveries", "outputs", "notifications", "workers", "sweeps", "pauses",
    "recover", "runbook",
)  # fmt: skip
NAVIGATION: Final = {
    f"{views.CONSOLE}/{page}".rstrip("/"): page.replace("-", " ").capitalize() or "Overview" for page in PAGES
}
views.TEMPLATES.filters.update(formats.FILTERS)


class ConsoleQuery(query.BaseQuery):
    """What links and forms of the console name; unknown names are ignored."""

    model_config = query.IGNORE_UNKNOWN

    id: str = ""
    target: str = ""
    provider: str = ""
    hours: int = Field(0, ge=0, le=720)


async def get_operator(request: Request, ctx: Context) -> Caller:
    """Return the caller of the session. Raises Problem: 401 not signed in, 403 from another origin or level."""
    cookie = authentication.read_token(request.scope["headers"], ctx.settings, authentication.CONSOLE)
    if cookie is None:
        raise Problem(401, "")
    caller = await _authenticate(ctx, _decode(cookie))
    authentication.check_origin(request.method, request.scope["headers"], ctx.settings)
    return replace(caller, client="console")


async def _authenticate(ctx: AppContext, token: bytes) -> Caller:
    caller = await ctx.authenticator.authenticate({"headers": [(b"authorization", b"Bearer " + token)]})
    if caller.level < Level.VIEWER:
        raise Problem(401, "The console requires a token of level admin or viewer.")
    return caller


Operator = Annotated[Caller, Depends(get_operator)]


async def get_admin(caller: Operator) -> Caller:
    """Return the caller if it may act. Raises Problem: 403 for a viewer."""
    if caller.level < Level.ADMIN:
        raise Problem(403, "a token of level viewer only reads: sign in with one of level admin")
    return caller


async def read_urlencoded_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form; raises as `read_typed_bytes` does."""
    body = await json_body.read_typed_bytes(request, "application/x-www-form-urlencoded")
    try:
        fields = parse_qs(body.decode("latin-1"), max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise Problem(422, f"the form has more than {MAX_FIELDS} fields") from error
    if not all(is_storable(value) for values in fields.values() for value in values):
        raise Problem(422, "the form contains characters that cannot be stored")
    return fields


def parse_form(fields: dict[str, list[str]], model: type[Q]) -> Q:
    """Return the fields of a form; `id` may be given several times. Raises Problem: 422."""
    try:
        return model.model_validate({name: value if name == "id" else value[0] for name, value in fields.items()})
    except ValueError as error:
        raise Problem(422, "the form is invalid: open the page again") from error


Admin = Annotated[Caller, Depends(get_admin)]
Form = Annotated[dict[str, list[str]], Depends(read_urlencoded_form)]


@router.post("/sign-in")
async def sign_in(request: Request, form: Form, ctx: Context) -> Response:
    """Store the token in the session cookie and redirect to the page that was requested."""
    authentication.check_origin(request.method, request.scope["headers"], ctx.settings)
    token, target = form.get("token", [""])[0].strip().encode(), form.get("next", [""])[0]
    await _authenticate(ctx, token)
    response = redirect(target if views.is_page_path(target.partition("?")[0]) else views.CONSOLE)
    encoded = base64.urlsafe_b64encode(token).decode()
    authentication.set_token(response, ctx.settings, encoded, SESSION_SECONDS, authentication.CONSOLE)
    return response


@router.post("/sign-out")
async def sign_out(_: Operator, ctx: Context) -> Response:
    response = redirect(views.CONSOLE)
    authentication.set_token(response, ctx.settings, "", 0, authentication.CONSOLE)
    return response


def redirect(path: str) -> Response:
    return RedirectResponse(path, 303, problems.NO_STORE)


def show_result(path: str, result: str) -> Response:
    """Redirect to a page of the console, which shows the result of an action."""
    return redirect(f"{views.CONSOLE}{path}?{urlencode({'result': result})}")


def is_console_path(path: str) -> bool:
    return path == views.CONSOLE or path.startswith(f"{views.CONSOLE}/")


def render_problem(request: Request, problem: Problem) -> Response:
    """Return a problem as a page; 401 as the page to sign in, with 200 where the page was only requested."""
    ctx: AppContext = request.app.state.context
    if problem.status == 401:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        target = target if request.method == "GET" else views.CONSOLE
        status = 200 if request.method == "GET" else 401
        message = "This token is not valid." if request.url.path.endswith("/sign-in") else ""
        message = problem.detail if problem.detail.endswith(".") else message
        return views.html_response(ctx, "console/sign_in.html", status_code=status, target=target, message=message)
    variables = {"title": "Problem", "detail": problem.detail, "errors": problem.errors, **_frame(request, None, [])}
    response = views.html_response(ctx, "console/problem.html", status_code=problem.status, **variables)
    response.headers.update(problem.headers)
    return response


async def render(
    request: Request, ctx: AppContext, caller: Caller, template: str, paused: list[Row] | None = None, **variables: Any
) -> Response:
    """Return a page of the console, with a banner for each pause: `paused`, if the caller has read them."""
    paused = await ctx.database.read(pauses.list_pauses) if paused is None else paused
    return views.html_response(ctx, f"console/{template}", **variables, **_frame(request, caller, paused))


def _frame(request: Request, caller: Caller | None, paused: list[Row]) -> dict[str, Any]:
    return {
        "navigation": NAVIGATION,
        "path": request.url.path,
        "caller": caller,
        "can_act": caller is not None and caller.level is Level.ADMIN,
        "paused": paused,
        "now": datetime.now(UTC),
        "result": request.query_params.get("result", "")[:200],
    }


def _decode(cookie: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(cookie)
    except (binascii.Error, ValueError):
        return b""
