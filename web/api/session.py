"""/v1/session: an owner token in an HttpOnly, SameSite=Strict cookie, for pages: EventSource cannot send a header."""

import time
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from moorage.owner_tokens import sort_scopes
from web.api.responses import SessionView
from web.http import problems, query
from web.http.permissions import Level
from web.http.problems import Problem
from web.http.router import Router
from web.http.session_cookie import set_token
from web.services.dependencies import AnyCaller, Context

router: Final = Router(prefix="/session", tags=["session"])


@router.get("", response_description="the caller")
async def get_session(caller: AnyCaller) -> SessionView:
    """Return the caller: the level, the owner, the scopes and the expiry of its token."""
    expires_at = None if caller.expires_unix is None else datetime.fromtimestamp(caller.expires_unix, UTC)
    scopes = sort_scopes(caller.token.scopes) if caller.token else None
    fields = {"level": caller.level.name.lower(), "owner": caller.owner, "scopes": scopes, "expires_at": expires_at}
    return SessionView.model_validate(fields)


@router.post("", status_code=204, response_description="the cookie is set")
async def create_session(request: Request, caller: AnyCaller, ctx: Context, params: query.SessionFilters) -> Response:
    """Set the session cookie to the owner token in the Authorization header; 409: the cookie is of another owner."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if caller.level is not Level.OWNER or caller.expires_unix is None or scheme.lower() != "bearer":
        raise Problem(403, "a session requires an owner token: send one as Authorization: Bearer TOKEN")
    present = await ctx.authenticator.find_session(request.scope)
    if present is not None and present.owner != caller.owner and not params.replace:
        raise Problem(409, f"this browser has a session of {present.owner}: send ?replace=true to replace it")
    response = problems.no_content()
    set_token(response, ctx.settings, token.strip(), max(1, caller.expires_unix - int(time.time())))
    return response


@router.delete("", status_code=204, response_description="the cookie is removed")
async def delete_session(ctx: Context) -> Response:
    """Remove the session cookie; the token in it remains valid until it expires."""
    response = problems.no_content()
    set_token(response, ctx.settings, "", 0)
    return response
