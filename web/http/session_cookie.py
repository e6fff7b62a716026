"""Session cookies: their names, the token in them, and the origin check of requests authenticated by one."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response

from moorage.settings import Settings
from web.http.problems import Problem

Headers = Iterable[tuple[bytes, bytes]]

PAGE: Final = "moorage"  # of an owner, on the page
CONSOLE: Final = "moorage-ops"  # of an operator: both may be signed in with one browser
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")


def cookie_name(settings: Settings, name: str = PAGE) -> str:
    """Return the cookie's name. With https it has the prefix `__Host-`: no other host can set it."""
    return f"__Host-{name}" if _is_https(settings) else name


def read_token(headers: Headers, settings: Settings, name: str = PAGE) -> str | None:
    """Return the token in the cookie; None without one, and for two cookies of that name, of which one is forged."""
    expected = cookie_name(settings, name)
    tokens = []
    for header, value in headers:
        if header == b"cookie":
            pairs = (pair.strip().partition("=") for pair in value.decode("latin-1").split(";"))
            tokens += [token for key, _, token in pairs if key == expected]
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


def set_token(response: Response, settings: Settings, token: str, seconds: int, name: str = PAGE) -> None:
    """Set the cookie for `seconds`; 0 removes it."""
    response.set_cookie(
        cookie_name(settings, name), token, max_age=seconds, path="/", secure=_is_https(settings), httponly=True,
        samesite="strict",
    )  # fmt: skip


def _is_https(settings: Settings) -> bool:
    return settings.public_url.startswith("https://")
