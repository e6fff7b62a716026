"""
Owner tokens: they give a browser temporary access to the rows of one owner.

They are not stored: owner, expiry, scopes and id are in the token, encrypted and signed (Fernet). A new secret revokes
all of them; `db/owner_token_revocations.py` has those that are revoked before they expire.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, get_args
from uuid import UUID

from cryptography import fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moorage import ids
from moorage.errors import MoorageError
from moorage.settings import Settings

Scope = Literal["read", "jobs", "upload", "delete"]

PREFIX: Final = "mro_"
MAX_LIFETIME_SECONDS: Final = 86_400
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)  # in the order in which they are shown
_MAX_CHARS: Final = 2000  # an owner of 200 four-byte characters results in 1,339


class InvalidToken(MoorageError):
    """The text is not an owner token, has a wrong signature, or expired."""


@dataclass(frozen=True, slots=True)
class OwnerToken:
    owner: str
    until: int  # Unix seconds
    scopes: frozenset[Scope] = frozenset({"read"})
    token_id: UUID = field(default_factory=ids.uuid7)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of revocations that refuse this token."""
        return owner_subject(self.owner), token_subject(self.token_id)

    def is_revoked(self, revocations: Mapping[str, datetime]) -> bool:
        """Return True if one of the revocations, subjects with their times, refuses this token."""
        revoked_at = revocations.get(owner_subject(self.owner))
        issued_at = datetime.fromtimestamp((self.token_id.int >> 80) / 1000, UTC)  # the time in a UUIDv7
        is_older = revoked_at is not None and issued_at <= revoked_at
        return is_older or token_subject(self.token_id) in revocations


def owner_subject(owner: str) -> str:
    return f"owner:{hashlib.sha256(owner.encode()).hexdigest()}"


def token_subject(token_id: UUID) -> str:
    return f"token:{token_id}"


def sort_scopes(scopes: Iterable[Scope]) -> list[Scope]:
    return sorted(scopes, key=SCOPES.index)


def derive_signing_key(settings: Settings, purpose: bytes = b"moorage owner token 2") -> bytes | None:
    """Return the key, derived from MOORAGE_OWNER_TOKEN_SECRET, else from MOORAGE_API_TOKEN; None without both."""
    secret = settings.owner_token_secret or settings.api_token
    if secret is None:
        return None
    # HKDF (RFC 5869): the key reveals nothing about the API token and has no other use.
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose)
    return derivation.derive(secret.get_secret_value().encode())


def encode(key: bytes, token: OwnerToken) -> str:
    """Return a token as text that is safe in a header, a cookie and a URL."""
    fields = {"owner": token.owner, "until": token.until, "scopes": [*token.scopes], "id": str(token.token_id)}
    encrypted = _build_cipher(key).encrypt(json.dumps(fields, ensure_ascii=False).encode())
    return PREFIX + encrypted.decode().rstrip("=")


def decode(key: bytes, text: str, now: float) -> OwnerToken:
    """Verify and decode a token. Raises InvalidToken. `now`: Unix seconds."""
    encoded = text.removeprefix(PREFIX)
    try:
        if encoded == text or len(text) > _MAX_CHARS:
            raise ValueError("not an owner token")
        fields = json.loads(_build_cipher(key).decrypt(encoded + "=" * (-len(encoded) % 4)))
    except (fernet.InvalidToken, ValueError) as error:
        raise InvalidToken("the owner token is not valid") from error
    if now >= fields["until"]:
        raise InvalidToken("the owner token expired: request a new one")
    return OwnerToken(fields["owner"], fields["until"], frozenset(fields["scopes"]), UUID(fields["id"]))


def _build_cipher(key: bytes) -> fernet.Fernet:
    return fernet.Fernet(base64.urlsafe_b64encode(key))
