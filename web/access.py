"""Who may use the API: for now one bearer token, MOORAGE_API_TOKEN, which sees all owners."""

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr

from web.problems import Problem


class Gate:
    """Lets the bearer of the token pass. Without a token it is shut, never open."""

    def __init__(self, token: SecretStr | None) -> None:
        self._digest = _digest(token.get_secret_value().encode()) if token else None

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """
        Return when the request carries the token.

        Raises:
            Problem: 401, or 503 when no token is set.
        """
        if self._digest is None:
            raise Problem(503, "MOORAGE_API_TOKEN is not set: set it where moorage runs, and start it again")
        given = [value for name, value in headers if name == b"authorization"]
        if not given:
            raise _refused("send the header Authorization: Bearer MOORAGE_API_TOKEN", "")
        scheme, _, token = given[0].partition(b" ")
        is_bearer = len(given) == 1 and scheme.lower() == b"bearer"
        # Digests are compared, in constant time: neither the token's bytes nor its length can be measured.
        if not hmac.compare_digest(_digest(token.strip(b" ")), self._digest) or not is_bearer:
            raise _refused("the token is not MOORAGE_API_TOKEN", ', error="invalid_token"')


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _refused(detail: str, error: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": f'Bearer realm="moorage"{error}'})
