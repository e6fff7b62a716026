"""Authentication by token or session cookie. Fails closed when no token is configured."""

import hashlib
import hmac
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Scope

from db import api_tokens, owner_token_revocations
from moorage import owner_tokens
from moorage.settings import Settings
from web.http.permissions import Caller, Level
from web.http.problems import Problem
from web.services.database import DatabaseThreads

Headers = Iterable[tuple[bytes, bytes]]

PAGE: Final = "moorage"  # of an owner, on the page
CONSOLE: Final = "moorage-ops"  # of an operator: both may be signed in with one browser
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
_LEVELS: Final = {"application": Level.APPLICATION, "viewer": Level.VIEWER, "admin": Level.ADMIN}
_BEARER_ERROR: Final = ', error="invalid_token"'


class Authenticator:
    """Accepts MOORAGE_API_TOKEN, tokens in `api_tokens`, owner tokens, and the session cookie with an owner token."""

    def __init__(self, settings: Settings, database: DatabaseThreads) -> None:
        token = settings.api_token
        self._settings = settings
        self._database = database
        self._digest = _digest(token.get_secret_value().encode()) if token else None
        self._owner_key = owner_tokens.derive_signing_key(settings)

    async def authenticate(self, scope: Scope) -> Caller:
        """Return the caller. Raises Problem: 401, 403 cookie from another origin, 503 no token set or no database."""
        authorization = [value for name, value in scope["headers"] if name == b"authorization"]
        if authorization:
            return await self._check_bearer(authorization)
        cookie = read_token(scope["headers"], self._settings)
        if cookie is None:
            raise self._unauthorized("send the header Authorization: Bearer TOKEN", "")
        caller = await self._check_owner_token(cookie)
        check_origin(scope["method"], scope["headers"], self._settings)
        return caller

    async def find_session(self, scope: Scope) -> Caller | None:
        """Return whose session cookie a request has, None without a valid one. Raises Problem: 503 no database."""
        cookie = read_token(scope["headers"], self._settings)
        try:
            return await self._check_owner_token(cookie) if cookie else None
        except Problem as problem:
            if problem.status != 401:
                raise
            return None

    async def _check_bearer(self, authorization: list[bytes]) -> Caller:
        scheme, _, credentials = authorization[0].partition(b" ")
        is_bearer = len(authorization) == 1 and scheme.lower() == b"bearer"
        token = credentials.strip(b" ")
        # Digests are compared, in constant time: timing reveals neither the token's bytes nor its length.
        if self._digest is not None and hmac.compare_digest(_digest(token), self._digest) and is_bearer:
            return Caller(Level.ADMIN)
        text = token.decode("latin-1")
        if is_bearer and text.startswith(owner_tokens.PREFIX):
            return await self._check_owner_token(text)
        if is_bearer and text.startswith(api_tokens.PREFIX):
            row = await self._database.transaction(lambda conn: api_tokens.get_active(conn, text))
            if row is not None:
                return Caller(_LEVELS[row["role"]], name=row["name"], api_token_id=row["id"])
        raise self._unauthorized("invalid token", _BEARER_ERROR)

    async def _check_owner_token(self, text: str) -> Caller:
        if self._owner_key is None:
            raise self._unauthorized("invalid token", _BEARER_ERROR)
        try:
            token = owner_tokens.decode(self._owner_key, text, time.time())
        except owner_tokens.InvalidToken as error:
            raise self._unauthorized(str(error), _BEARER_ERROR) from error
        if token.is_revoked(await self._database.transaction(lambda conn: owner_token_revocations.find(conn, [token]))):
            raise self._unauthorized("the owner token is revoked: request a new one", _BEARER_ERROR)
        return Caller(Level.OWNER, token.owner, token.until, token)

    def _unauthorized(self, detail: str, error: str) -> Problem:
        if self._digest is None:
            return Problem(503, "MOORAGE_API_TOKEN is not set: set it on the server and restart")
        return Problem(401, detail, headers={"WWW-Authenticate": f'Bearer realm="moorage"{error}'})


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


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
    public, (scheme, _, netloc) = urlsplit(settings.public_url), origin.partition("://")  # urlsplit raises for http://[
    is_public = (scheme, netloc) == (public.scheme, public.netloc)
    return is_public or (scheme in ("http", "https") and bool(host) and netloc == host)


def set_token(response: Response, settings: Settings, token: str, seconds: int, name: str = PAGE) -> None:
    """Set the cookie for `seconds`; 0 removes it."""
    response.set_cookie(
        cookie_name(settings, name), token, max_age=seconds, path="/", secure=_is_https(settings), httponly=True,
        samesite="strict",
    )  # fmt: skip


def _is_https(settings: Settings) -> bool:
    return settings.public_url.startswith("https://")
