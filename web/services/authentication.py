"""Authentication. Fails closed when no token is configured."""

import hashlib
import hmac
import time
from typing import Final

from starlette.types import Scope

from db import api_tokens, owner_token_revocations
from moorage import owner_tokens
from moorage.settings import Settings
from web.http import session_cookie
from web.http.permissions import Caller, Level
from web.http.problems import Problem
from web.services.database import DatabaseThreads

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
        cookie = session_cookie.read_token(scope["headers"], self._settings)
        if cookie is None:
            raise self._unauthorized("send the header Authorization: Bearer TOKEN", "")
        caller = await self._check_owner_token(cookie)
        session_cookie.check_origin(scope["method"], scope["headers"], self._settings)
        return caller

    async def find_session(self, scope: Scope) -> Caller | None:
        """Return whose session cookie a request has, None without a valid one. Raises Problem: 503 no database."""
        cookie = session_cookie.read_token(scope["headers"], self._settings)
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
                return Caller(_LEVELS[row["role"]], name=row["name"])
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
