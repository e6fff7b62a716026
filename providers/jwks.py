"""Public keys of a provider: fetched as a JSON Web Key Set, cached, and refreshed when a signature does not match."""

import base64
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from moorage import logs
from moorage.errors import BadSignature, KeysStale, MalformedPayload, MoorageError
from providers import json_fields
from providers.api_client import ApiClient

log = logs.get_logger(__name__)

MAX_AGE_SECONDS: Final = 24 * 3600.0
REFRESH_SECONDS: Final = 300.0  # limits the fetches that forged webhooks cause
INITIAL_REFRESH_SECONDS: Final = 15.0  # while there is no key
_MAX_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 32  # each one is tried for a webhook with a forged signature
_KEY_BYTES: Final = 32


class KeySet:
    """
    The `fixed` Ed25519 keys, and those from the first of several URLs that responds. `name` is for messages.

    `require_signature` never blocks; `fetch` sends HTTP requests: call it in a thread if an event loop runs. `clock` is
    in monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        urls: Sequence[str] = (),
        *,
        fixed: Sequence[Ed25519PublicKey] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._urls = tuple(urls)
        self._fixed = tuple(fixed)
        self._clock = clock
        self._api = ApiClient(name, None, max_bytes=_MAX_BYTES)
        self._fetching = threading.Lock()
        self._fetched_at: float | None = None
        self._attempted_at: float | None = None
        self.keys: tuple[Ed25519PublicKey, ...] = self._fixed

    def require_signature(self, signatures: Sequence[bytes], message: bytes) -> None:
        """Raise BadSignature unless a key made one of the signatures, or KeysStale: call `fetch` first."""
        keys = self.keys
        matches = any(_is_signed_by(key, signature, message) for key in keys for signature in signatures)
        if self.may_fetch() and (self.is_stale() or not matches):
            raise KeysStale(f"{self._name} must be fetched")
        if not matches and self.keys is not keys:  # replaced by another thread
            raise KeysStale(f"{self._name} just changed")
        if not keys:
            raise KeysStale(f"{self._name} could not be fetched")
        if not matches:
            raise BadSignature(f"no key of {self._name} matches the signature, or the body was changed in transit")

    def is_stale(self) -> bool:
        """Return True if the keys are older than 24 hours, or were never fetched."""
        return self._fetched_at is None or self._clock() - self._fetched_at > MAX_AGE_SECONDS

    def may_fetch(self) -> bool:
        """Return True if 5 minutes (15 s without a key) passed since the last fetch."""
        if not self._urls:
            return False
        wait = REFRESH_SECONDS if self.keys else INITIAL_REFRESH_SECONDS
        return self._attempted_at is None or self._clock() - self._attempted_at >= wait

    def fetch(self) -> None:
        """Fetch the keys, or wait for another thread that does; known keys remain valid if every URL fails."""
        with self._fetching:
            if not self.may_fetch():
                return
            try:
                any(self._fetch_from(url) for url in self._urls)
            finally:
                self._attempted_at = self._clock()  # at the end: other threads wait for this fetch

    def replace_keys(self, document: bytes) -> None:
        self.keys = self._fixed + parse_ed25519_keys(document)
        self._fetched_at = self._attempted_at = self._clock()

    def _fetch_from(self, url: str) -> bool:
        try:
            self.replace_keys(self._api.get(url))
        except MoorageError as error:
            log.warning("keys.fetch_failed", provider=self._name, url=url, error=str(error), known=len(self.keys))
            return False
        log.info("keys.fetched", provider=self._name, url=url, keys=len(self.keys))
        return True


def parse_ed25519_keys(document: bytes) -> tuple[Ed25519PublicKey, ...]:
    """Return the Ed25519 keys of a JSON Web Key Set (RFC 8037) in order, at least one; raises MalformedPayload."""
    entries = json_fields.parse_json_object(document).get("keys")
    if not isinstance(entries, list):
        raise MalformedPayload("keys is missing or not a list: not a JSON Web Key Set")
    if len(entries) > _MAX_KEYS:
        raise MalformedPayload(f"the set has {len(entries)} keys, more than {_MAX_KEYS}")
    keys = tuple(key for entry in entries if (key := _parse_key(entry)) is not None)
    if not keys:
        raise MalformedPayload("the set has no Ed25519 key")
    return keys


def _is_signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _parse_key(entry: Any) -> Ed25519PublicKey | None:
    if not isinstance(entry, dict) or (entry.get("kty"), entry.get("crv")) != ("OKP", "Ed25519"):
        return None
    text = entry.get("x")
    if not isinstance(text, str) or not text.isascii():
        return None
    try:
        raw = base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    return Ed25519PublicKey.from_public_bytes(raw) if len(raw) == _KEY_BYTES else None
