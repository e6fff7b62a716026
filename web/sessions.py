"""
/v1/session: an owner token as a cookie, for pages. EventSource and links cannot send a header.

The cookie is HttpOnly (no script reads it) and SameSite=Strict (no other site sends it). A request that changes
something and is let in by the cookie must say besides that it comes from a page of ours.
"""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from moorage.settings import Settings
from web import access, desk, problems
from web.access import Level
from web.problems import Problem

Headers = Iterable[tuple[bytes, bytes]]

HTTPS_COOKIE: Final = "__Host-moorage"
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_OURS: Final = (b"same-origin",)


async def show(request: Request) -> Response:
    """Answer 200 with who calls: what the token allows, whose it is and when it ends."""
    caller = access.of(request)
    return problems.answer(
        200, {"level": caller.level.name.lower(), "owner": caller.owner, "expires_at": _moment(caller.until)}
    )


async def begin(request: Request) -> Response:
    """Answer 204 and set the cookie: the owner token of the request's Authorization, for as long as it lives."""
    caller = access.of(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if caller.level is not Level.OWNER or caller.until is None or scheme.lower() != "bearer":
        raise Problem(403, "only an owner token becomes a session: send one as Authorization: Bearer")
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    _set(response, desk.of(request).settings, token.strip(), max(1, caller.until - int(time.time())))
    return response


async def end(request: Request) -> Response:
    """Answer 204 and remove the cookie; the token in it lives on until its end."""
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    _set(response, desk.of(request).settings, "", 0)
    return response


def cookie_name(settings: Settings) -> str:
    """Return the cookie's name. Over https a browser takes this one from our host alone, not from one beside it."""
    return HTTPS_COOKIE if _is_https(settings) else "moorage"


def token_in(headers: Headers, settings: Settings) -> str | None:
    """Return the token of the cookie; None without one, and where there are two: nobody knows which is ours."""
    wanted = cookie_name(settings)
    found = []
    for name, value in headers:
        if name == b"cookie":
            pairs = (pair.strip().partition("=") for pair in value.decode("latin-1").split(";"))
            found += [token for key, _, token in pairs if key == wanted]
    return found[0] if len(found) == 1 else None


def check_origin(method: str, headers: Headers, settings: Settings) -> None:
    """
    Return when a request that the cookie lets in may do what it asks: it reads, or a page of ours sent it.

    Raises:
        Problem: 403: another site's page sent it, or nobody knows who did.
    """
    if method in _SAFE:
        return
    given = dict(headers)
    site, origin = given.get(b"sec-fetch-site"), given.get(b"origin")
    if site is not None and site not in _OURS:
        raise _foreign()
    if origin is not None:
        if not _is_ours(origin.decode("latin-1"), given.get(b"host", b"").decode("latin-1"), settings):
            raise _foreign()
    elif site is None:
        raise _foreign()


def _is_ours(origin: str, host: str, settings: Settings) -> bool:
    """Return whether an origin is PUBLIC_URL's, or that of the very host which was asked."""
    ours, theirs = urlsplit(settings.public_url), urlsplit(origin)
    is_public = (theirs.scheme, theirs.netloc) == (ours.scheme, ours.netloc)
    return is_public or (theirs.scheme in ("http", "https") and bool(host) and theirs.netloc == host)


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _foreign() -> Problem:
    return Problem(403, "a session changes things only from its own page: send the token as Authorization: Bearer")


def _set(response: Response, settings: Settings, token: str, seconds: int) -> None:
    response.set_cookie(
        cookie_name(settings), token, max_age=seconds, path="/", secure=_is_https(settings), httponly=True,
        samesite="strict",
    )  # fmt: skip


def _is_https(settings: Settings) -> bool:
    return settings.public_url.startswith("https://")
