"""The session cookie: its name, the token in it, and the origin check of requests authenticated by it."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response

from moorage.settings import Settings
from web.http.problems import Problem

Headers = Iterable[tuple[bytes, bytes]]

HTTPS_COOKIE: Final = "__Host-moorage"
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")


def cookie_name(settings: Settings) -> str:
    """Return the cookie's name. With https it has the prefix `__Host-`: no other host can set it."""
    return HTTPS_COOKIE if _is_https(settings) else "moorage"


def read_token(headers: Headers, settings: Settings) -> str | None:
    """Return the token in the cookie; None without one, and for two cookies of that name, of which one is forged."""
    name = cookie_name(settings)
    tokens = []
    for header, value in headers:
        if header == b"cookie":
            pairs = (pair.strip().partition("=") for pair in value.decode("latin-1").split(";"))
            tokens += [token for key, _, token in pairs if key == name]
    return tokens[0] if len(tokens) == 1 else None


def check_origin(method: str, headers: Headers, settings: Settings) -> None:
    """Raise Problem 403 unless the request, authenticated by the cookie, only reads or comes from this origin."""
    if method in _SAFE_METHODS:
        return
    values = dict(headers)
    site, origin = values.get(b"sec-fetch-site"), values.get(b"origin")
    host = values.get(b"host", b"").decode("latin-1")
    is_own_origin = origin is None or _is_same_origin(origin.decode("latin-1"), host, settings)
    if site not in (None, b"same-origin") or not is_own_origin or (site is None and origin is None):
        detail = "a session cookie is accepted from the same origin only: send Authorization: Bearer TOKEN"
        raise Problem(403, detail)


def _is_same_origin(origin: str, host: str, settings: Settings) -> bool:
    public, sender = urlsplit(settings.public_url), urlsplit(origin)
    is_public = (sender.scheme, sender.netloc) == (public.scheme, public.netloc)
    return is_public or (sender.scheme in ("http", "https") and bool(host) and sender.netloc == host)


def set_token(response: Response, settings: Settings, token: str, seconds: int) -> None:
    """Set the cookie for `seconds`; 0 removes it."""
    response.set_cookie(
        cookie_name(settings), token, max_age=seconds, path="/", secure=_is_https(settings), httponly=True,
        samesite="strict",
    )  # fmt: skip


def _is_https(settings: Settings) -> bool:
    return settings.public_url.startswith("https://")
