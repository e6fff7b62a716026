"""The public keys that a provider signs with: fetched as a JSON Web Key Set, kept, and fetched again when they fail."""

import base64
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from moorage import logs
from moorage.errors import MalformedPayload, MoorageError
from providers import json_fields
from providers.api_client import ApiClient

log = logs.get_logger(__name__)

MAX_AGE_SECONDS: Final = 24 * 3600.0
REFRESH_SECONDS: Final = 300.0  # forged webhooks cause no more than one fetch in this time
INITIAL_REFRESH_SECONDS: Final = 15.0  # as long as there are no keys at all, they are asked for more often
_MAX_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 32  # each costs a check of every webhook that none of them signed
_KEY_BYTES: Final = 32


class KeySet:
    """
    The Ed25519 keys at the first of some addresses that answers.

    Reading `keys` and `is_due` never waits; `fetch` speaks HTTP and belongs into a thread where an event loop runs.

    Args:
        name: of the provider, for messages.
        urls: of the set, tried in turn.
        clock: seconds that only go forward.
    """

    def __init__(self, name: str, urls: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._urls = tuple(urls)
        self._clock = clock
        self._api = ApiClient(name, None, max_bytes=_MAX_BYTES)
        self._fetching = threading.Lock()
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self.keys: tuple[Ed25519PublicKey, ...] = ()

    def is_stale(self) -> bool:
        """Return whether the keys are to be fetched again although they may still be right."""
        return self._fetched_at is None or self._clock() - self._fetched_at > MAX_AGE_SECONDS

    def may_fetch(self) -> bool:
        """Return whether the set may be asked for now: not again within 5 minutes (15 s while there is no key)."""
        wait = REFRESH_SECONDS if self.keys else INITIAL_REFRESH_SECONDS
        return self._tried_at is None or self._clock() - self._tried_at >= wait

    def fetch(self) -> None:
        """
        Fetch the keys, unless another thread just did; where no address gives any, those that are known stay.

        Whoever comes while it runs waits for its end and asks nothing.
        """
        with self._fetching:
            if not self.may_fetch():
                return
            try:
                any(self._fetch_from(url) for url in self._urls)
            finally:
                self._tried_at = self._clock()  # at the end: until then everyone waits for this fetch

    def replace_keys(self, document: bytes) -> None:
        """
        Replace the keys by those of a JSON Web Key Set; other kinds of keys in it are passed over.

        Raises:
            Unreadable: it holds no Ed25519 key, or too many.
        """
        self.keys = parse_ed25519_keys(document)
        self._fetched_at = self._tried_at = self._clock()

    def _fetch_from(self, url: str) -> bool:
        try:
            self.replace_keys(self._api.get(url))
        except MoorageError as error:
            log.warning("keys.not_fetched", provider=self._name, url=url, error=str(error), known=len(self.keys))
            return False
        log.info("keys.fetched", provider=self._name, url=url, keys=len(self.keys))
        return True


def parse_ed25519_keys(document: bytes) -> tuple[Ed25519PublicKey, ...]:
    """
    Return the Ed25519 keys of a JSON Web Key Set (RFC 8037), in its order.

    Raises:
        Unreadable: it holds none, more than 32, or is no such set.
    """
    entries = json_fields.parse_json_object(document).get("keys")
    if not isinstance(entries, list):
        raise MalformedPayload("keys is missing or is no list: this is no JSON Web Key Set")
    if len(entries) > _MAX_KEYS:
        raise MalformedPayload(f"the set holds {len(entries)} keys, more than {_MAX_KEYS}")
    keys = tuple(key for entry in entries if (key := _ed25519(entry)) is not None)
    if not keys:
        raise MalformedPayload("the set holds no Ed25519 key")
    return keys


def _ed25519(entry: Any) -> Ed25519PublicKey | None:
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
