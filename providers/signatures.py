"""
Verifiers of signed webhooks, one function a signing family. They work on the raw bytes of a request.

None raises anything but BadSignature, whatever the bytes; secrets are decoded when the process starts.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import SecretStr

from moorage.errors import BadSignature, ConfigError

Headers = Sequence[tuple[bytes, bytes]]

TOLERANCE_SECONDS: Final = 300
# The specification asks for 24 to 64 bytes; its own test vectors hold 23.
_MIN_SECRET_BYTES: Final = 16
_TIMESTAMP: Final = re.compile(rb"[1-9][0-9]{0,11}")
# A full stop would let the signed text be cut in another place; the specification forbids it.
_ID: Final = re.compile(rb"[!-\-/-~]{1,2000}")
_VISIBLE: Final = re.compile(rb"[!-~]{1,200}")
_HEX_SIGNATURE: Final = re.compile(rb"[0-9a-fA-F]{128}")


def decode_standard_secrets(given: Iterable[SecretStr], setting: str) -> tuple[bytes, ...]:
    """
    Decode the secrets of Standard Webhooks: base64, with or without `whsec_` before it and padding after it.

    Raises:
        ConfigError: one of them is no such secret; the message names the setting and never shows the secret.
    """
    return tuple(_standard_secret(one.get_secret_value(), place, setting) for place, one in enumerate(given, 1))


def verify_standard_v1(
    headers: Headers, body: bytes, now: float, *, secrets: Sequence[bytes], prefixes: Sequence[str] = ("webhook-",)
) -> str:
    """
    Return the id of a webhook signed as Standard Webhooks 1.0 `v1`: HMAC-SHA256 over `id.timestamp.body`, base64.

    Args:
        now: seconds since 1970.
        secrets: the live ones; any may match any of the signatures.
        prefixes: of the three headers; the first that the request uses counts alone.

    Raises:
        BadSignature: a header is missing, doubled or malformed, the time stamp is more than 300 s off, nothing matches.
    """
    names = _names_in_use(headers, prefixes)
    webhook_id, timestamp, signatures = (_only(headers, name) for name in names)
    if not _ID.fullmatch(webhook_id):
        raise BadSignature(f"{names[0]} is empty or holds characters that an id never has")
    _check_age(timestamp, now, names[1])
    start = webhook_id + b"." + timestamp + b"."
    wanted = [_hmac_base64(secret, start, body) for secret in secrets]
    offered = [part[3:] for part in signatures.split() if part.startswith(b"v1,")]
    if not offered:
        raise BadSignature(f"{names[2]} holds no v1 signature")
    matches = [hmac.compare_digest(one, other) for one in wanted for other in offered]
    if not any(matches):  # all were compared: the time taken says nothing about which one matched
        raise BadSignature("no signature matches: another secret, or the body was changed on its way")
    return webhook_id.decode("ascii")


def sign_standard_v1(webhook_id: str, timestamp: int, body: bytes, *, secrets: Sequence[bytes]) -> str:
    """Return the signature header of a webhook of ours, as `standard_v1` reads it: a `v1` for each secret."""
    start = f"{webhook_id}.{timestamp}.".encode()
    return " ".join("v1," + _hmac_base64(secret, start, body).decode() for secret in secrets)


@dataclass(frozen=True, slots=True)
class DigestSignature:
    """What a digest signature of Ed25519 covers besides the body, its form checked; `matches` judges it by the keys."""

    user_id: str
    message: bytes
    signature: bytes

    def matches(self, keys: Iterable[Ed25519PublicKey]) -> bool:
        """Return whether any of the keys made the signature."""
        return any(_is_signed_by(key, self.signature, self.message) for key in keys)


def parse_digest_signature(headers: Headers, body: bytes, now: float, *, prefix: str) -> DigestSignature:
    """
    Return what is signed as Ed25519 over `request id, user id, time stamp, hex(sha256(body))`, joined by newlines.

    Args:
        now: seconds since 1970.
        prefix: of the four headers: `x-fal-webhook-` and then `request-id`, `user-id`, `timestamp`, `signature`.

    Raises:
        BadSignature: a header is missing, doubled or malformed, the time stamp is more than 300 s off.
    """
    names = [f"{prefix}{part}" for part in ("request-id", "user-id", "timestamp", "signature")]
    request_id, user_id, timestamp, signature = (_only(headers, name) for name in names)
    for name, value in zip(names, (request_id, user_id), strict=False):
        if not _VISIBLE.fullmatch(value):  # a newline in one would let the signed text be cut in another place
            raise BadSignature(f"{name} is empty or holds characters that an id never has")
    _check_age(timestamp, now, names[2])
    if not _HEX_SIGNATURE.fullmatch(signature):
        raise BadSignature(f"{names[3]} is not 128 hexadecimal digits")
    digest = hashlib.sha256(body).hexdigest().encode()
    message = b"\n".join((request_id, user_id, timestamp, digest))
    return DigestSignature(user_id.decode("ascii"), message, bytes.fromhex(signature.decode("ascii")))


def _is_signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _standard_secret(text: str, place: int, setting: str) -> bytes:
    encoded = text.removeprefix("whsec_")
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) < _MIN_SECRET_BYTES:
        # Not chained: the cause would carry the secret into a traceback.
        raise ConfigError(
            f"{setting}: secret {place} is no signing secret of at least {_MIN_SECRET_BYTES} bytes;"
            " write whsec_ and its base64 text, as the provider shows it"
        ) from None
    return secret


def _names_in_use(headers: Headers, prefixes: Sequence[str]) -> tuple[str, str, str]:
    present = {name.lower() for name, _ in headers}
    parts = ("id", "timestamp", "signature")
    for prefix in prefixes:
        if any(f"{prefix}{part}".encode() in present for part in parts):
            return f"{prefix}id", f"{prefix}timestamp", f"{prefix}signature"
    return f"{prefixes[0]}id", f"{prefixes[0]}timestamp", f"{prefixes[0]}signature"


def _only(headers: Headers, name: str) -> bytes:
    """Return the value of a header that must be there once: of two, another reader may take the other."""
    wanted = name.encode()
    values = [value for key, value in headers if key.lower() == wanted]
    if len(values) != 1:
        raise BadSignature(f"{name} is missing" if not values else f"{name} is there {len(values)} times")
    return values[0]


def _check_age(timestamp: bytes, now: float, name: str) -> None:
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadSignature(f"{name} is not a whole number of seconds since 1970")
    age = int(now) - int(timestamp)
    if abs(age) > TOLERANCE_SECONDS:
        told = f"{age} s old" if age > 0 else f"{-age} s ahead of our clock"
        raise BadSignature(f"{name} is {told}, more than {TOLERANCE_SECONDS} s")


def _hmac_base64(secret: bytes, start: bytes, body: bytes) -> bytes:
    digest = hmac.new(secret, start, "sha256")
    digest.update(body)  # not start + body: a body of 16 MiB is not copied
    return base64.b64encode(digest.digest())
