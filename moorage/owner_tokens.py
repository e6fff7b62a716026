"""
Owner tokens: what an application gives to a browser, so that it sees one owner's rows for a while.

Nothing of them is stored: version, end and owner are in the token, signed with HMAC-SHA256. They end by themselves;
changing the secret ends all of them at once.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moorage.errors import MoorageError
from moorage.settings import Settings

PREFIX: Final = "mro_"
MAX_LIFETIME_SECONDS: Final = 86_400
MAX_OWNER_CHARS: Final = 200  # characters, as everywhere
_VERSION: Final = b"\x01"
_END_BYTES: Final = 8  # Unix seconds
_MAC_BYTES: Final = 32
_MAX_CHARS: Final = 2000  # an owner of 200 characters of 4 bytes makes 1,128


class InvalidToken(MoorageError):
    """The text is no owner token of ours, or its time is over."""


@dataclass(frozen=True, slots=True)
class OwnerToken:
    """What a token says."""

    owner: str
    until: int  # Unix seconds


def derive_signing_key(settings: Settings) -> bytes | None:
    """Return the key that tokens are signed with, from the secret for them, else the API token; None without both."""
    secret = settings.owner_token_secret or settings.api_token
    if secret is None:
        return None
    # HKDF (RFC 5869), so that the key tells nothing of the API token and serves for nothing else.
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"moorage owner token 1")
    return derivation.derive(secret.get_secret_value().encode())


def encode(key: bytes, token: OwnerToken) -> str:
    """Return a token as text that stands in a header, a cookie and an address."""
    said = _VERSION + token.until.to_bytes(_END_BYTES, "big") + token.owner.encode()
    return PREFIX + base64.urlsafe_b64encode(said + _mac(key, said)).rstrip(b"=").decode()


def decode(key: bytes, text: str, now: float) -> OwnerToken:
    """
    Return what a token says.

    Args:
        now: Unix seconds.

    Raises:
        TokenRefused: it was not made with this key, or its time is over.
    """
    signed = _decode(text)
    said, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
    # The signature first: nothing is read of what we did not sign.
    if not hmac.compare_digest(_mac(key, said), mac) or said[:1] != _VERSION:
        raise InvalidToken("the owner token was not made here")
    token = OwnerToken(said[1 + _END_BYTES :].decode(), int.from_bytes(said[1 : 1 + _END_BYTES], "big"))
    if now >= token.until:
        raise InvalidToken("the owner token's time is over: the application makes a new one")
    return token


def _decode(text: str) -> bytes:
    body = text.removeprefix(PREFIX)
    if body == text or len(text) > _MAX_CHARS:
        raise InvalidToken("this is no owner token")
    try:
        signed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidToken("this is no owner token") from error
    if len(signed) <= 1 + _END_BYTES + _MAC_BYTES:
        raise InvalidToken("this is no owner token")
    return signed


def _mac(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, said, hashlib.sha256)
