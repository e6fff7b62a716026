"""
Signatures of webhooks, one function per scheme, computed over the raw bytes of a request.

Verification raises nothing but BadSignature, whatever the bytes. Secrets are decoded at process start.
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
# The specification requires 24 to 64 bytes; its own test vectors have 23.
_MIN_SECRET_BYTES: Final = 16
_TIMESTAMP: Final = re.compile(rb"[1-9][0-9]{0,11}")
# No full stop: it separates the parts of the signed text; the specification forbids it.
_ID: Final = re.compile(rb"[!-\-/-~]{1,2000}")
_VISIBLE: Final = re.compile(rb"[!-~]{1,200}")
_HEX_SIGNATURE: Final = re.compile(rb"[0-9a-fA-F]{128}")


def decode_standard_secrets(values: Iterable[SecretStr], setting: str) -> tuple[bytes, ...]:
    """Decode Standard Webhooks secrets: base64, with or without `whsec_` and padding; raises ConfigError."""
    return tuple(_decode_secret(value.get_secret_value(), number, setting) for number, value in enumerate(values, 1))


@dataclass(frozen=True, slots=True)
class StandardHeaders:
    """The three headers of Standard Webhooks, whose form and time stamp are valid."""

    webhook_id: bytes
    timestamp: bytes
    signatures: Sequence[bytes]  # the `v1` ones, base64


def parse_standard_headers(headers: Headers, now: float, *, prefixes: Sequence[str] = ("webhook-",)) -> StandardHeaders:
    """
    Parse the headers of a Standard Webhooks 1.0 request. Raises BadSignature; needs no body.

    `now` is in Unix seconds. Of the `prefixes` of the three headers, the first one in the request is used.
    """
    names = _find_header_names(headers, prefixes)
    webhook_id, timestamp, signatures = (_get_single_header(headers, name) for name in names)
    if not _ID.fullmatch(webhook_id):
        raise BadSignature(f"{names[0]} is empty or has a character that is invalid in an id")
    _check_timestamp(timestamp, now, names[1])
    received = [part[3:] for part in signatures.split() if part.startswith(b"v1,")]
    if not received:
        raise BadSignature(f"{names[2]} has no v1 signature")
    return StandardHeaders(webhook_id, timestamp, received)


def verify_standard_v1(parsed: StandardHeaders, body: bytes, secrets: Sequence[bytes]) -> str:
    """
    Verify a `v1` signature (HMAC-SHA256 over `id.timestamp.body`, base64) and return the id. Raises BadSignature.

    Any secret may match any of the signatures.
    """
    start = parsed.webhook_id + b"." + parsed.timestamp + b"."
    expected = [_hmac_base64(secret, start, body) for secret in secrets]
    matches = [hmac.compare_digest(mac, signature) for mac in expected for signature in parsed.signatures]
    if not any(matches):  # all are compared, for constant time
        raise BadSignature("no signature matches: another secret, or the body was changed in transit")
    return parsed.webhook_id.decode("ascii")


def sign_standard_v1(webhook_id: str, timestamp: int, body: bytes, *, secrets: Sequence[bytes]) -> str:
    """Return the signature header of an outbound webhook: one `v1` signature per secret."""
    start = f"{webhook_id}.{timestamp}.".encode()
    return " ".join("v1," + _hmac_base64(secret, start, body).decode() for secret in secrets)


@dataclass(frozen=True, slots=True)
class DigestSignature:
    """The headers of an Ed25519 digest signature, whose form and time stamp are valid; `matches` verifies it."""

    user_id: str
    signed_headers: tuple[bytes, bytes, bytes]  # request id, user id, time stamp
    signature: bytes

    def matches(self, body: bytes, keys: Iterable[Ed25519PublicKey]) -> bool:
        """Return True if a key signed request id, user id, time stamp and hex(sha256(body)), joined by newlines."""
        message = b"\n".join((*self.signed_headers, hashlib.sha256(body).hexdigest().encode()))
        return any(_is_signed_by(key, self.signature, message) for key in keys)


def parse_digest_signature(headers: Headers, now: float, *, prefix: str) -> DigestSignature:
    """
    Parse the headers of a digest signature; needs no body.

    `now` is in Unix seconds. Raises BadSignature for a malformed header or a time stamp that is over 300 s off.
    """
    names = [f"{prefix}{part}" for part in ("request-id", "user-id", "timestamp", "signature")]
    request_id, user_id, timestamp, signature = (_get_single_header(headers, name) for name in names)
    for name, value in zip(names, (request_id, user_id), strict=False):
        if not _VISIBLE.fullmatch(value):  # no newline: it separates the parts of the signed text
            raise BadSignature(f"{name} is empty or has a character that is invalid in an id")
    _check_timestamp(timestamp, now, names[2])
    if not _HEX_SIGNATURE.fullmatch(signature):
        raise BadSignature(f"{names[3]} is not 128 hexadecimal digits")
    signed_headers = (request_id, user_id, timestamp)
    return DigestSignature(user_id.decode("ascii"), signed_headers, bytes.fromhex(signature.decode("ascii")))


def _is_signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _decode_secret(text: str, number: int, setting: str) -> bytes:
    encoded = text.removeprefix("whsec_")
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) < _MIN_SECRET_BYTES:
        # Not chained: the cause would show the secret in a traceback.
        raise ConfigError(
            f"{setting}: secret {number} is not a signing secret of at least {_MIN_SECRET_BYTES} bytes;"
            " copy whsec_ and its base64 text as the provider shows it"
        ) from None
    return secret


def _find_header_names(headers: Headers, prefixes: Sequence[str]) -> tuple[str, str, str]:
    present = {name.lower() for name, _ in headers}
    parts = ("id", "timestamp", "signature")
    for prefix in prefixes:
        if any(f"{prefix}{part}".encode() in present for part in parts):
            return f"{prefix}id", f"{prefix}timestamp", f"{prefix}signature"
    return f"{prefixes[0]}id", f"{prefixes[0]}timestamp", f"{prefixes[0]}signature"


def _get_single_header(headers: Headers, name: str) -> bytes:
    """Return the value of a header; it must occur once, since two readers could use different ones of two."""
    encoded_name = name.encode()
    values = [value for key, value in headers if key.lower() == encoded_name]
    if len(values) != 1:
        raise BadSignature(f"{name} is missing" if not values else f"{name} occurs {len(values)} times")
    return values[0]


def _check_timestamp(timestamp: bytes, now: float, name: str) -> None:
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadSignature(f"{name} is not a whole number of seconds since 1970")
    age = int(now) - int(timestamp)
    if abs(age) > TOLERANCE_SECONDS:
        offset = f"{age} s old" if age > 0 else f"{-age} s ahead of our clock"
        raise BadSignature(f"{name} is {offset}, more than {TOLERANCE_SECONDS} s")


def _hmac_base64(secret: bytes, start: bytes, body: bytes) -> bytes:
    digest = hmac.new(secret, start, "sha256")
    digest.update(body)  # not start + body: a body of 16 MiB is not copied
    return base64.b64encode(digest.digest())
