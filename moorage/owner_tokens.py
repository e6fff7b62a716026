"""
Owner tokens: they give a browser temporary access to the rows of one owner.

They are not stored: version, expiry, id, scopes and owner are part of the token, signed with HMAC-SHA256. A new secret
revokes all of them; `db/owner_token_revocations.py` has those that are revoked before they expire.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, get_args
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moorage import ids
from moorage.errors import MoorageError
from moorage.settings import Settings

Scope = Literal["read", "jobs", "upload", "delete"]

PREFIX: Final = "mro_"
MAX_LIFETIME_SECONDS: Final = 86_400
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)  # in the order of their bits
_VERSION: Final = b"\x02"
_VERSION_1: Final = b"\x01"  # without id and scopes
_SCOPES_1: Final[tuple[Scope, ...]] = ("read", "jobs")
_EXPIRY_BYTES: Final = 8  # Unix seconds
_ID_BYTES: Final = 16
_MAC_BYTES: Final = 32
_MAX_CHARS: Final = 2000  # an owner of 200 four-byte characters results in 1,151


class InvalidToken(MoorageError):
    """The text is not an owner token, has a wrong signature, or expired."""


@dataclass(frozen=True, slots=True)
class OwnerToken:
    owner: str
    until: int  # Unix seconds
    scopes: frozenset[Scope] = frozenset({"read"})
    token_id: UUID | None = field(default_factory=ids.uuid7)  # None: of version 1

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of revocations that refuse this token."""
        return (owner_subject(self.owner), *([] if self.token_id is None else [token_subject(self.token_id)]))

    def is_revoked(self, revocations: Mapping[str, datetime]) -> bool:
        """Return True if one of the revocations, subjects with their times, refuses this token."""
        revoked_at = revocations.get(owner_subject(self.owner))
        if self.token_id is None:
            return revoked_at is not None
        is_older = revoked_at is not None and _get_issue_time(self.token_id) <= revoked_at
        return is_older or token_subject(self.token_id) in revocations


def owner_subject(owner: str) -> str:
    return f"owner:{hashlib.sha256(owner.encode()).hexdigest()}"


def token_subject(token_id: UUID) -> str:
    return f"token:{token_id}"


def _get_issue_time(token_id: UUID) -> datetime:
    """Return the time in a UUIDv7."""
    return datetime.fromtimestamp((token_id.int >> 80) / 1000, UTC)


def sort_scopes(scopes: Iterable[Scope]) -> list[Scope]:
    return sorted(scopes, key=SCOPES.index)


def derive_signing_key(settings: Settings, purpose: bytes = b"moorage owner token 1") -> bytes | None:
    """Return the key, derived from MOORAGE_OWNER_TOKEN_SECRET, else from MOORAGE_API_TOKEN; None without both."""
    secret = settings.owner_token_secret or settings.api_token
    if secret is None:
        return None
    # HKDF (RFC 5869): the key reveals nothing about the API token and has no other use.
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose)
    return derivation.derive(secret.get_secret_value().encode())


def encode(key: bytes, token: OwnerToken) -> str:
    """Return a token, which has an id, as text that is safe in a header, a cookie and a URL."""
    token_id = token.token_id.bytes if token.token_id else b""
    scopes = sum(1 << SCOPES.index(scope) for scope in token.scopes)
    payload = _VERSION + token.until.to_bytes(_EXPIRY_BYTES, "big") + token_id + bytes([scopes]) + token.owner.encode()
    return PREFIX + base64.urlsafe_b64encode(payload + _mac(key, payload)).rstrip(b"=").decode()


def decode(key: bytes, text: str, now: float) -> OwnerToken:
    """Verify and decode a token. Raises InvalidToken. `now`: Unix seconds."""
    signed = _decode_base64(text)
    payload, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
    # The signature first: nothing unsigned is parsed.
    if not hmac.compare_digest(_mac(key, payload), mac) or payload[:1] not in (_VERSION, _VERSION_1):
        raise InvalidToken("the owner token is not valid")
    until, rest = int.from_bytes(payload[1 : 1 + _EXPIRY_BYTES], "big"), payload[1 + _EXPIRY_BYTES :]
    if payload[:1] == _VERSION_1:
        token = OwnerToken(rest.decode(), until, frozenset(_SCOPES_1), None)
    else:
        bits = rest[_ID_BYTES]
        scopes = frozenset(scope for number, scope in enumerate(SCOPES) if bits >> number & 1)
        token = OwnerToken(rest[_ID_BYTES + 1 :].decode(), until, scopes, UUID(bytes=rest[:_ID_BYTES]))
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
