"""URLs and headers of provider APIs: URLs that are safe for a token, the token's header, ids as path segments."""

import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import quote

from pydantic import SecretStr

from moorage.errors import ConfigError, DownloadRefused, ProviderRefused
from moorage.text import to_storable
from moorage.urls import HostAllowlist

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def require_secure_url(url: str, hosts: HostAllowlist, setting: str) -> None:
    """Raise ConfigError unless a token may be sent to a URL: by https:, or to an address in MOORAGE_EGRESS_ALLOW."""
    try:
        is_safe = hosts.is_safe_for_secrets(url)
    except DownloadRefused as error:
        raise ConfigError(f"{setting}: {error}; write an https: URL") from error
    if not is_safe:
        raise ConfigError(
            f"{setting} is not encrypted: write an https: URL, or add its exact address and port to"
            " MOORAGE_EGRESS_ALLOW"
        )


def build_token_header(scheme: str, token: SecretStr, setting: str, *, name: str = "Authorization") -> tuple[str, str]:
    """Return the header `NAME: SCHEME TOKEN`; raises ConfigError if the token has an invalid character."""
    text = token.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{setting} contains a character that no token has: copy it as the provider shows it")
    return name, f"{scheme} {text}" if scheme else text


def validate_models(names: Iterable[str], parse_model: Callable[[str], object], setting: str) -> None:
    """Check the model names in a setting; raises ConfigError for the first invalid one."""
    for name in names:
        try:
            parse_model(name)
        except ProviderRefused as error:
            raise ConfigError(f"{setting}: {error}") from error


def quote_path_segment(external_id: str) -> str:
    """Return a provider's id as one segment of a URL path; raises ProviderRefused."""
    if external_id in ("", ".", ".."):
        raise ProviderRefused(f"{external_id!r} is not the id of a prediction")
    return quote(external_id, safe="", errors="replace")


def split_model_name(model: str, form: str = "owner/name") -> tuple[str, ...]:
    """Return the segments of a model's name; raises ProviderRefused for one that is not safe in a URL path."""
    segments = tuple(model.strip("/").split("/"))
    least = form.count("/") + 1
    if not least <= len(segments) <= 12 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise ProviderRefused(f"{to_storable(model, 100)!r} is not a model: write it as {form}")
    return segments
