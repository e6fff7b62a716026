"""Signs webhooks as fal.ai does, with `cryptography` alone: nothing of the code under test."""

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NOW = 1_790_000_000
KEY, SECOND, FORGER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))


def sign(
    body: bytes,
    *,
    key: Ed25519PrivateKey = KEY,
    at: int = NOW,
    timestamp: str | None = None,
    request_id: str = "r1",
    user: str = "me",
) -> list[tuple[bytes, bytes]]:
    """Return the four headers of a webhook."""
    parts = [part.encode() for part in (request_id, user, str(at) if timestamp is None else timestamp)]
    message = b"\n".join([*parts, hashlib.sha256(body).hexdigest().encode()])
    names = ("request-id", "user-id", "timestamp", "signature")
    values = [*parts, key.sign(message).hex().encode()]
    return [(f"x-fal-webhook-{name}".encode(), value) for name, value in zip(names, values, strict=True)]


def jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    """Return a public key as a JSON Web Key."""
    raw = base64.urlsafe_b64encode(key.public_key().public_bytes_raw())
    return {"kty": "OKP", "crv": "Ed25519", "x": raw.rstrip(b"=").decode()}


def jwks(*keys: Ed25519PrivateKey) -> bytes:
    """Return a JSON Web Key Set."""
    return json.dumps({"keys": [jwk(key) for key in keys]}).encode()
