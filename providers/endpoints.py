"""Where a provider is asked: addresses a token may travel to, the header that carries it, ids as steps of a path."""

import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import quote

from pydantic import SecretStr

from moorage.errors import ConfigError, DownloadRefused, ProviderRefused
from moorage.text import to_storable
from moorage.urls import HostAllowlist

_STEP: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def require_secure_url(url: str, hosts: HostAllowlist, setting: str) -> None:
    """
    Make sure that a token may travel to an address: over https:, or to an exact address of MOORAGE_EGRESS_ALLOW.

    Raises:
        ConfigError: it may not, or it is no address; the message names the setting.
    """
    try:
        is_safe = hosts.is_safe_for_secrets(url)
    except DownloadRefused as error:
        raise ConfigError(f"{setting}: {error}; write an https: address") from error
    if not is_safe:
        raise ConfigError(
            f"{setting} would be asked unencrypted: write an https: address, or name the exact address and port in"
            " MOORAGE_EGRESS_ALLOW"
        )


def build_token_header(scheme: str, token: SecretStr, setting: str) -> tuple[str, str]:
    """Return the header `Authorization: SCHEME TOKEN`; raises ConfigError for what no header may hold."""
    text = token.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{setting} holds a character that no token has: write it as the provider shows it")
    return "Authorization", f"{scheme} {text}"


def validate_models(names: Iterable[str], parse_model: Callable[[str], object], setting: str) -> None:
    """Make sure that a dialect can read the models of a setting; raises ConfigError for the first that it cannot."""
    for name in names:
        try:
            parse_model(name)
        except ProviderRefused as error:
            raise ConfigError(f"{setting}: {error}") from error


def quote_path_segment(external_id: str) -> str:
    """Return a provider's id as one step of a path, so that it leads nowhere else; raises ProviderRefused."""
    if external_id in ("", ".", ".."):
        raise ProviderRefused(f"{external_id!r} is not the id of a prediction")
    return quote(external_id, safe="", errors="replace")


def split_model_name(model: str) -> tuple[str, ...]:
    """
    Return the steps of a model's name, "owner/name" and so on, each of which may stand in a path.

    Raises:
        ProviderRefused: it has fewer than two, or one that would lead elsewhere.
    """
    steps = tuple(model.strip("/").split("/"))
    if not 2 <= len(steps) <= 12 or not all(_STEP.fullmatch(step) for step in steps):
        raise ProviderRefused(f"{to_storable(model, 100)!r} is no model: write it as owner/name")
    return steps
