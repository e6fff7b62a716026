"""
/v1/session: an owner token as a cookie, for pages. EventSource and links cannot send a header.

The cookie is HttpOnly (no script reads it) and SameSite=Strict (no other site sends it). A request that changes
something and is let in by the cookie must say besides that it comes from a page of ours.
"""

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
    """Answer 200 with who calls: what the token allows, whose it is and when it ends."""
    caller = permissions.get_caller(request)
    return problems.json_response(
        200,
        {"level": caller.level.name.lower(), "owner": caller.owner, "expires_at": _utc_datetime(caller.expires_unix)},
    )


async def create_session(request: Request) -> Response:
    """Answer 204 and set the cookie: the owner token of the request's Authorization, for as long as it lives."""
    caller = permissions.get_caller(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if caller.level is not Level.OWNER or caller.expires_unix is None or scheme.lower() != "bearer":
        raise Problem(403, "only an owner token becomes a session: send one as Authorization: Bearer")
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    set_token(
        response, context.get_context(request).settings, token.strip(), max(1, caller.expires_unix - int(time.time()))
    )
    return response


async def delete_session(request: Request) -> Response:
    """Answer 204 and remove the cookie; the token in it lives on until its end."""
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    set_token(response, context.get_context(request).settings, "", 0)
    return response


def _utc_datetime(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
