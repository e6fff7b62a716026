"""The gate before the API: finds out who calls. Shut, never open, where no token is set."""

import hashlib
import hmac
import time
from typing import Final

from starlette.types import Scope

from db import api_tokens
from moorage import owner_tokens
from moorage.settings import Settings
from web.http import session_cookie
from web.http.permissions import Caller, Level
from web.http.problems import Problem
from web.services.database import DatabaseThreads

_LEVELS: Final = {"application": Level.APPLICATION, "admin": Level.ADMIN}
_INVALID: Final = ', error="invalid_token"'


class Authenticator:
    """Knows MOORAGE_API_TOKEN, the tokens in `api_tokens`, owner tokens, and the cookie that holds one of these."""

    def __init__(self, settings: Settings, threads: DatabaseThreads) -> None:
        token = settings.api_token
        self._settings = settings
        self._database = threads
        self._digest = _digest(token.get_secret_value().encode()) if token else None
        self._owner_key = owner_tokens.derive_signing_key(settings)

    async def authenticate(self, scope: Scope) -> Caller:
        """
        Return who sends a request.

        Raises:
            Problem: 401 nobody we know, 403 a session used by a foreign page, 503 without a token in the settings, or
                without PostgreSQL where it must be asked.
        """
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if given:
            return await self._check_bearer(given)
        cookie = session_cookie.read_token(scope["headers"], self._settings)
        if cookie is None:
            raise self._unauthorized("send the header Authorization: Bearer TOKEN", "")
        caller = self._check_owner_token(cookie)
        session_cookie.check_origin(scope["method"], scope["headers"], self._settings)
        return caller

    async def _check_bearer(self, given: list[bytes]) -> Caller:
        scheme, _, sent = given[0].partition(b" ")
        is_bearer = len(given) == 1 and scheme.lower() == b"bearer"
        token = sent.strip(b" ")
        # Digests are compared, in constant time: neither the token's bytes nor its length can be measured.
        if self._digest is not None and hmac.compare_digest(_digest(token), self._digest) and is_bearer:
            return Caller(Level.ADMIN)
        text = token.decode("latin-1")
        if is_bearer and text.startswith(owner_tokens.PREFIX):
            return self._check_owner_token(text)
        if is_bearer and text.startswith(api_tokens.PREFIX):
            role = await self._database.run(lambda database: database.run(lambda c: api_tokens.get_role(c, text)))
            if role is not None:
                return Caller(_LEVELS[role])
        raise self._unauthorized("the token is not one of ours", _INVALID)

    def _check_owner_token(self, text: str) -> Caller:
        if self._owner_key is None:
            raise self._unauthorized("the token is not one of ours", _INVALID)
        try:
            token = owner_tokens.decode(self._owner_key, text, time.time())
        except owner_tokens.InvalidToken as error:
            raise self._unauthorized(str(error), _INVALID) from error
        return Caller(Level.OWNER, token.owner, token.until)

    def _unauthorized(self, detail: str, error: str) -> Problem:
        if self._digest is None:
            return Problem(503, "MOORAGE_API_TOKEN is not set: set it where moorage runs, and start it again")
        return Problem(401, detail, headers={"WWW-Authenticate": f'Bearer realm="moorage"{error}'})


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
