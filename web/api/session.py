"""/v1/session: an owner token in an HttpOnly, SameSite=Strict cookie, for pages: EventSource cannot send a header."""

import time
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from web.http import permissions, problems
from web.http.permissions import Level
from web.http.problems import Problem
from web.http.session_cookie import set_token
from web.services import context


async def get_session(request: Request) -> Response:
    """Return the caller: the level, the owner and the expiry of its token."""
    caller = permissions.get_caller(request)
    expires_at = None if caller.expires_unix is None else datetime.fromtimestamp(caller.expires_unix, UTC)
    fields = {"level": caller.level.name.lower(), "owner": caller.owner, "expires_at": expires_at}
    return problems.json_response(200, fields)


async def create_session(request: Request) -> Response:
    """Set the session cookie to the owner token in the Authorization header."""
    caller = permissions.get_caller(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if caller.level is not Level.OWNER or caller.expires_unix is None or scheme.lower() != "bearer":
        raise Problem(403, "a session requires an owner token: send one as Authorization: Bearer TOKEN")
    response = Response(status_code=204, headers=problems.NO_STORE)
    seconds = max(1, caller.expires_unix - int(time.time()))
    set_token(response, context.get_context(request).settings, token.strip(), seconds)
    return response


async def delete_session(request: Request) -> Response:
    """Remove the session cookie; the token in it remains valid until it expires."""
    response = Response(status_code=204, headers=problems.NO_STORE)
    set_token(response, context.get_context(request).settings, "", 0)
    return response
