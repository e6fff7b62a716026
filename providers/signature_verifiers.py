"""
The families of webhook signatures, each computed over the raw bytes of a request.

A verifier first parses the headers, before any byte of the body is held, then verifies the body. Both raise nothing but
BadSignature, whatever the bytes, and KeysStale if public keys must be fetched first. Every live secret may match;
comparisons take constant time.
"""

import base64
import hashlib
import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from moorage.errors import BadSignature
from moorage.provider_types import VerifiedDelivery
from providers.jwks import KeySet
from providers.webhook_signing import mac

Headers = Sequence[tuple[bytes, bytes]]

TOLERANCE_SECONDS: Final = 300
STANDARD_HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
SVIX_HEADERS: Final = ("svix-id", "svix-timestamp", "svix-signature")
# No full stop: it separates the parts of the signed text; the specification forbids it.
_ID: Final = re.compile(rb"[!-\-/-~]{1,2000}")
_VISIBLE: Final = re.compile(rb"[!-~]{1,200}")  # no newline: it separates the parts of the signed text
_V1A: Final = re.compile(rb"v1a,([A-Za-z0-9+/]{86}==)")
_HEX: Final = re.compile(rb"[0-9a-fA-F]*")
_TIMESTAMP: Final = re.compile(rb"[1-9][0-9]{0,11}")
_ED25519_HEX_DIGITS: Final = 128
_MAX_SIGNATURES: Final = 4  # of a request, with public keys: each costs a pass over the body per key
_NO_MATCH: Final = "no signature matches: another secret, or the body was changed in transit"


class Verifier(ABC):
    has_secret: bool  # there is a secret or key to verify with

    @abstractmethod
    def check_headers(self, headers: Headers, now: float) -> Any:
        """Return what `verify` needs, never None; `now` in Unix seconds."""

    @abstractmethod
    def verify_body(self, parsed: Any, body: bytes) -> VerifiedDelivery:
        """Return the sender's id of the webhook, if its signature covers one."""

    def fetch_keys(self) -> None:  # noqa: B027 (most families have secrets instead)
        """Fetch the public keys if `verify` raised KeysStale; blocks for seconds, raises nothing."""


class StandardSignature(NamedTuple):
    webhook_id: bytes
    timestamp: bytes
    v1: Sequence[bytes]  # base64
    v1a: Sequence[bytes] | None  # None: none was offered, or there is no public key


class StandardVerifier(Verifier):
    """
    Standard Webhooks 1.0: `v1` (HMAC-SHA256, `secrets`) and `v1a` (Ed25519, `keys`) over `id.timestamp.body`.

    Where a `v1a` signature is offered and there are keys, it decides alone: a right `v1` must not rescue a wrong one.
    Of the `names` of the three headers, the first group in a request is used.
    """

    def __init__(
        self, secrets: Iterable[bytes] = (), keys: KeySet | None = None, *, names: Sequence[Sequence[str]] | None = None
    ) -> None:
        self._secrets, self._keys, self._names = tuple(secrets), keys, names or [STANDARD_HEADERS]
        self.has_secret = bool(self._secrets or self._keys)

    def check_headers(self, headers: Headers, now: float) -> StandardSignature:
        names = self._names[0] if len(self._names) == 1 else self._find_header_names(headers)
        webhook_id, timestamp, signatures = (get_single_header(headers, name) for name in names)
        if not _ID.fullmatch(webhook_id):
            raise BadSignature(f"{names[0]} is empty or has a character that is invalid in an id")
        check_timestamp(timestamp, now, names[1])
        parts = signatures.split()
        v1 = [part[3:] for part in parts if part.startswith(b"v1,")] if self._secrets else []
        v1a = [part for part in parts if part.startswith(b"v1a,")] if self._keys else []
        if not v1 and not v1a:
            versions = " or ".join(["v1"] * bool(self._secrets) + ["v1a"] * bool(self._keys))
            raise BadSignature(f"{names[2]} has no {versions} signature")
        if len(v1a) > _MAX_SIGNATURES:
            raise BadSignature(f"{names[2]} has more than {_MAX_SIGNATURES} v1a signatures")
        decoded = [base64.b64decode(match[1]) for part in v1a if (match := _V1A.fullmatch(part))]
        return StandardSignature(webhook_id, timestamp, v1, decoded if v1a else None)

    def verify_body(self, parsed: StandardSignature, body: bytes) -> VerifiedDelivery:
        start = parsed.webhook_id + b"." + parsed.timestamp + b"."
        if parsed.v1a is not None and self._keys:
            self._keys.require_signature(parsed.v1a, start + body)
        else:
            expected = [base64.b64encode(mac(secret, start, body)) for secret in self._secrets]
            _require_equal(expected, parsed.v1)
        return VerifiedDelivery(parsed.webhook_id.decode("ascii"))

    def fetch_keys(self) -> None:
        if self._keys:
            self._keys.fetch()

    def _find_header_names(self, headers: Headers) -> Sequence[str]:
        present = {name.lower() for name, _ in headers}
        groups = (group for group in self._names if any(name.encode() in present for name in group))
        return next(groups, self._names[0])


class DigestSignature(NamedTuple):
    signed_headers: Sequence[bytes]  # request id, user id, time stamp
    signature: bytes


class DigestVerifier(Verifier):
    """
    Ed25519 over request id, user id, time stamp and hex(sha256(body)), joined by newlines; the signature is in hex.

    Args:
        names: of the four headers: request id, user id, time stamp, signature.
        users: whose webhooks are accepted; empty for all users of the keys.
    """

    has_secret = True

    def __init__(self, keys: KeySet, names: Sequence[str], *, users: Collection[str] = (), sender: str = "") -> None:
        self.key_set: Final = keys
        self._names, self._users, self._sender = names, frozenset(users), sender

    def check_headers(self, headers: Headers, now: float) -> DigestSignature:
        *signed, signature = (get_single_header(headers, name) for name in self._names)
        for name, value in zip(self._names, signed[:2], strict=False):
            if not _VISIBLE.fullmatch(value):
                raise BadSignature(f"{name} is empty or has a character that is invalid in an id")
        check_timestamp(signed[2], now, self._names[2])
        if self._users and signed[1].decode("ascii") not in self._users:
            raise BadSignature(f"signed for another user of {self._sender}: {signed[1].decode('ascii')}")
        return DigestSignature(signed, _decode_hex(signature, _ED25519_HEX_DIGITS, self._names[3]))

    def verify_body(self, parsed: DigestSignature, body: bytes) -> VerifiedDelivery:
        message = b"\n".join((*parsed.signed_headers, hashlib.sha256(body).hexdigest().encode()))
        self.key_set.require_signature([parsed.signature], message)
        # No id: retries repeat the request id, so a second webhook with another content would be a duplicate.
        return VerifiedDelivery(webhook_id=None)

    def fetch_keys(self) -> None:
        self.key_set.fetch()


class HmacSignature(NamedTuple):
    start: bytes  # of the signed text, before the body
    signatures: Sequence[bytes]


class HmacVerifier(Verifier):
    """
    HMAC in hex over the body, or over `t.body`, in one header: `sha256=HEX` or `t=UNIX,v0=HEX`.

    Args:
        prefix: before the hexadecimal digits; signatures with another one (a weaker version) do not count.
        is_timed: the header has a time stamp `t=`, which is signed.
        tolerance_seconds: the largest age; a time stamp may be 300 s ahead.
    """

    def __init__(
        self, secrets: Iterable[bytes], header: str, *, prefix: str = "",
        algorithm: Literal["sha256", "sha512"] = "sha256", is_timed: bool = False,
        tolerance_seconds: int = TOLERANCE_SECONDS,
    ) -> None:  # fmt: skip
        self._secrets, self._header, self._prefix = tuple(secrets), header, prefix.encode()
        self._algorithm, self._is_timed, self._tolerance_seconds = algorithm, is_timed, tolerance_seconds
        self._digits = hashlib.new(algorithm).digest_size * 2
        self.has_secret = bool(self._secrets)

    def check_headers(self, headers: Headers, now: float) -> HmacSignature:
        parts = [part.strip(b" \t") for part in get_single_header(headers, self._header).split(b",")]
        start = b""
        if self._is_timed:
            times = [part[2:] for part in parts if part.startswith(b"t=")]
            if len(times) != 1:
                raise BadSignature(f"{self._header} has {len(times)} time stamps t= instead of one")
            check_timestamp(times[0], now, f"t= of {self._header}", self._tolerance_seconds)
            start = times[0] + b"."
            parts = [part for part in parts if not part.startswith(b"t=")]
        hexes = [part.removeprefix(self._prefix) for part in parts if part.startswith(self._prefix)]
        if not hexes:
            raise BadSignature(f"{self._header} has no signature that begins with {self._prefix.decode()}")
        return HmacSignature(start, [_decode_hex(text, self._digits, self._header) for text in hexes])

    def verify_body(self, parsed: HmacSignature, body: bytes) -> VerifiedDelivery:
        expected = [mac(secret, parsed.start, body, self._algorithm) for secret in self._secrets]
        _require_equal(expected, parsed.signatures)
        return VerifiedDelivery(webhook_id=None)


class TokenVerifier(Verifier):
    """A secret value in one header, after `scheme` (Bearer) if there is one: it says who sends, not what was sent."""

    def __init__(self, secrets: Iterable[bytes], header: str, *, scheme: str = "") -> None:
        self._header, start = header, f"{scheme} ".encode() if scheme else b""
        self._expected = [start + secret for secret in secrets]
        self.has_secret = bool(self._expected)

    def check_headers(self, headers: Headers, now: float) -> bool:  # noqa: ARG002 (there is no time stamp)
        value = get_single_header(headers, self._header)
        matches = [hmac.compare_digest(value, expected) for expected in self._expected]
        if not any(matches):  # all are compared, for constant time
            raise BadSignature(f"{self._header} is not a current token")
        return True

    def verify_body(self, parsed: bool, body: bytes) -> VerifiedDelivery:  # noqa: ARG002 (the body is not signed)
        return VerifiedDelivery(webhook_id=None)


def _decode_hex(text: bytes, digits: int, name: str) -> bytes:
    if len(text) != digits or not _HEX.fullmatch(text):
        raise BadSignature(f"{name} is not {digits} hexadecimal digits")
    return bytes.fromhex(text.decode("ascii"))


def _require_equal(expected: Sequence[bytes], received: Sequence[bytes]) -> None:
    matches = [hmac.compare_digest(one, other) for one in expected for other in received]
    if not any(matches):  # all are compared, for constant time
        raise BadSignature(_NO_MATCH)


def get_single_header(headers: Headers, name: str) -> bytes:
    """Return the value of a header; it must occur once, since two readers could use different ones of two."""
    encoded_name = name.encode()
    values = [value for key, value in headers if key.lower() == encoded_name]
    if len(values) != 1:
        raise BadSignature(f"{name} is missing" if not values else f"{name} occurs {len(values)} times")
    return values[0]


def check_timestamp(timestamp: bytes, now: float, name: str, tolerance_seconds: int = TOLERANCE_SECONDS) -> None:
    """Raise BadSignature unless a time in Unix seconds is at most the tolerance old, and 300 s ahead."""
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadSignature(f"{name} is not a whole number of seconds since 1970")
    age = int(now) - int(timestamp)
    if not -TOLERANCE_SECONDS <= age <= tolerance_seconds:
        offset = f"{age} s old" if age > 0 else f"{-age} s ahead of our clock"
        raise BadSignature(f"{name} is {offset}, more than {tolerance_seconds if age > 0 else TOLERANCE_SECONDS} s")
