"""Secrets and keys of webhook signatures, decoded at process start, and signing; `signature_verifiers.py` verifies."""

import base64
import binascii
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import SecretStr

from moorage.errors import ConfigError

# The specification requires 24 to 64 bytes; its own test vectors have 23.
_MIN_SECRET_BYTES: Final = 16
_PUBLIC_PREFIX: Final = "whpk_"
_KEY_BYTES: Final = 32


def decode_standard_secrets(values: Iterable[SecretStr], setting: str) -> tuple[bytes, ...]:
    """Decode Standard Webhooks secrets: base64, with or without `whsec_` and padding; raises ConfigError."""
    return tuple(_decode_secret(value.get_secret_value(), number, setting) for number, value in enumerate(values, 1))


def split_standard_keys(
    values: Iterable[SecretStr], setting: str
) -> tuple[tuple[bytes, ...], tuple[Ed25519PublicKey, ...]]:
    """Decode the secrets of `v1` and the public keys (`whpk_`) of `v1a` in one list; raises ConfigError."""
    given = tuple(values)
    public = [value for value in given if value.get_secret_value().startswith(_PUBLIC_PREFIX)]
    secrets = decode_standard_secrets([value for value in given if value not in public], setting)
    return secrets, tuple(_decode_public_key(value.get_secret_value(), setting) for value in public)


def sign_standard_v1(webhook_id: str, timestamp: int, body: bytes, *, secrets: Sequence[bytes]) -> str:
    """Return the signature header of an outbound webhook: one `v1` signature per secret."""
    start = f"{webhook_id}.{timestamp}.".encode()
    return " ".join("v1," + base64.b64encode(mac(secret, start, body)).decode() for secret in secrets)


def mac(secret: bytes, start: bytes, body: bytes, algorithm: str = "sha256") -> bytes:
    digest = hmac.new(secret, start, algorithm)  # hmac.digest always releases the GIL: the event loop waits for it
    digest.update(body)  # not start + body: a body of 16 MiB is not copied
    return digest.digest()


def _decode_secret(text: str, number: int, setting: str) -> bytes:
    secret = _decode_base64(text.removeprefix("whsec_"))
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigError(
            f"{setting}: secret {number} is not a signing secret of at least {_MIN_SECRET_BYTES} bytes;"
            " copy whsec_ and its base64 text as the provider shows it"
        )
    return secret


def _decode_public_key(text: str, setting: str) -> Ed25519PublicKey:
    key = _decode_base64(text.removeprefix(_PUBLIC_PREFIX))
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{setting}: a public key is not whpk_ and the base64 text of {_KEY_BYTES} bytes")
    return Ed25519PublicKey.from_public_bytes(key)


def _decode_base64(text: str) -> bytes:
    """Return the bytes, empty if invalid: an error raised here would show the secret as its cause."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""
