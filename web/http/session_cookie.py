"""The session cookie: its name, the token in it, and the origin check of requests that it lets in."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response

from moorage.settings import Settings
from web.http.problems import Problem

Headers = Iterable[tuple[bytes, bytes]]

HTTPS_COOKIE: Final = "__Host-moorage"
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_OURS: Final = (b"same-origin",)


def cookie_name(settings: Settings) -> str:
    """Return the cookie's name. Over https a browser takes this one from our host alone, not from one beside it."""
    return HTTPS_COOKIE if _is_https(settings) else "moorage"


def read_token(headers: Headers, settings: Settings) -> str | None:
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
        raise _foreign_origin()
    if origin is not None:
        if not _is_same_origin(origin.decode("latin-1"), given.get(b"host", b"").decode("latin-1"), settings):
            raise _foreign_origin()
    elif site is None:
        raise _foreign_origin()


def _is_same_origin(origin: str, host: str, settings: Settings) -> bool:
    """Return whether an origin is PUBLIC_URL's, or that of the very host which was asked."""
    ours, theirs = urlsplit(settings.public_url), urlsplit(origin)
    is_public = (theirs.scheme, theirs.netloc) == (ours.scheme, ours.netloc)
    return is_public or (theirs.scheme in ("http", "https") and bool(host) and theirs.netloc == host)


def _foreign_origin() -> Problem:
    return Problem(403, "a session changes things only from its own page: send the token as Authorization: Bearer")


def set_token(response: Response, settings: Settings, token: str, seconds: int) -> None:
    """Set the cookie for so many seconds; 0 removes it."""
    response.set_cookie(
        cookie_name(settings), token, max_age=seconds, path="/", secure=_is_https(settings), httponly=True,
        samesite="strict",
    )  # fmt: skip


def _is_https(settings: Settings) -> bool:
    return settings.public_url.startswith("https://")
