"""Links to files in quarantine: valid for five minutes without a token, since they are signed."""

import hashlib
import hmac
from typing import Final
from uuid import UUID

from moorage import owner_tokens
from moorage.settings import Settings

LINK_SECONDS: Final = 300
_PURPOSE: Final = b"moorage quarantine link 1"


def build_link(settings: Settings, output_id: UUID, now: float) -> str | None:
    """Return the URL of an output's file at the API; None without a secret to sign it. `now`: Unix seconds."""
    key, until = owner_tokens.derive_signing_key(settings, _PURPOSE), int(now) + LINK_SECONDS
    if key is None:
        return None
    path = f"/v1/assets/quarantine/{output_id}"
    return f"{str(settings.public_url).rstrip('/')}{path}?until={until}&signature={_sign(key, output_id, until)}"


def is_valid(settings: Settings, output_id: UUID, until: int, signature: str, now: float) -> bool:
    key = owner_tokens.derive_signing_key(settings, _PURPOSE)
    if key is None or now >= until:
        return False
    return hmac.compare_digest(_sign(key, output_id, until).encode(), signature.encode())


def _sign(key: bytes, output_id: UUID, until: int) -> str:
    return hmac.digest(key, f"{output_id} {until}".encode(), hashlib.sha256).hex()
