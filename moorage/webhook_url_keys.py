"""Single-use keys in the webhook URLs of submitted predictions. Only their SHA-256 is stored."""

import hashlib
import re
import secrets
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

_PARAMETER: Final = "key"
_KEY_BYTES: Final = 32  # 43 characters of base64
_KEY_IN_URL: Final = re.compile(rb"(/webhooks/[a-z0-9_-]+/?\?key=)([A-Za-z0-9_-]{43})(?![A-Za-z0-9_-])")


def create_url_key() -> str:
    return secrets.token_urlsafe(_KEY_BYTES)


def build_webhook_url(public_url: str, provider: str, key: str) -> str:
    return f"{public_url.rstrip('/')}/webhooks/{provider}?{urlencode({_PARAMETER: key})}"


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def hash_key_in_query(query: str) -> str | None:
    keys = parse_qs(query).get(_PARAMETER)
    return hash_key(keys[0]) if keys else None


def hash_key_in_url(url: str | None) -> str | None:
    """Return the hash of the key in a URL, or None if it has no key or cannot be parsed."""
    try:
        return hash_key_in_query(urlsplit(url or "").query)
    except ValueError:
        return None


def redact_keys(body: bytes) -> bytes:
    """Return a request body with the keys of webhook URLs replaced by asterisks; its length does not change."""
    return _KEY_IN_URL.sub(lambda match: match[1] + b"*" * len(match[2]), body) if b"key=" in body else body
