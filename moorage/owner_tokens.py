"""
Owner tokens: they give a browser temporary access to the rows of one owner.

They are not stored: version, expiry and owner are part of the token, signed with HMAC-SHA256. A new secret revokes all
of them.
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
_EXPIRY_BYTES: Final = 8  # Unix seconds
_MAC_BYTES: Final = 32
_MAX_CHARS: Final = 2000  # an owner of 200 four-byte characters results in 1,128


class InvalidToken(MoorageError):
    """The text is not an owner token, has a wrong signature, or expired."""


@dataclass(frozen=True, slots=True)
class OwnerToken:
    owner: str
    until: int  # Unix seconds


def derive_signing_key(settings: Settings, purpose: bytes = b"moorage owner token 1") -> bytes | None:
    """Return the key, derived from MOORAGE_OWNER_TOKEN_SECRET, else from MOORAGE_API_TOKEN; None without both."""
    secret = settings.owner_token_secret or settings.api_token
    if secret is None:
        return None
    # HKDF (RFC 5869): the key reveals nothing about the API token and has no other use.
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose)
    return derivation.derive(secret.get_secret_value().encode())


def encode(key: bytes, token: OwnerToken) -> str:
    """Return a token as text that is safe in a header, a cookie and a URL."""
    payload = _VERSION + token.until.to_bytes(_EXPIRY_BYTES, "big") + token.owner.encode()
    return PREFIX + base64.urlsafe_b64encode(payload + _mac(key, payload)).rstrip(b"=").decode()


def decode(key: bytes, text: str, now: float) -> OwnerToken:
    """Verify and decode a token. Raises InvalidToken. `now`: Unix seconds."""
    signed = _decode_base64(text)
    payload, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
    # The signature first: nothing unsigned is parsed.
    if not hmac.compare_digest(_mac(key, payload), mac) or payload[:1] != _VERSION:
        raise InvalidToken("the owner token is not valid")
    token = OwnerToken(payload[1 + _EXPIRY_BYTES :].decode(), int.from_bytes(payload[1 : 1 + _EXPIRY_BYTES], "big"))
    if now >= token.until:
        raise InvalidToken("the owner token expired: request a new one")
    return token


def _decode_base64(text: str) -> bytes:
    encoded = text.removeprefix(PREFIX)
    if encoded == text or len(text) > _MAX_CHARS:
        raise InvalidToken("not an owner token")
    try:
        signed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidToken("not an owner token") from error
    if len(signed) <= 1 + _EXPIRY_BYTES + _MAC_BYTES:
        raise InvalidToken("not an owner token")
    return signed


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)
