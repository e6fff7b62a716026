"""One file per provider: verification and parsing of webhooks, polling, submission. Light to import."""

from collections.abc import Callable, Mapping
from typing import Final

from moorage.errors import ConfigError
from moorage.settings import Settings
from providers.base import Provider
from providers.fal import Fal
from providers.openai import OpenAI
from providers.replicate import Replicate
from providers.standard import Standard

PROVIDER_TYPES: Final[tuple[Callable[[Settings], Provider], ...]] = (Fal, OpenAI, Replicate, Standard)


def load(settings: Settings) -> Mapping[str, Provider]:
    """Return every provider by name, enabled or not; raises ConfigError for an invalid setting."""
    loaded = {provider.name: provider for provider in (kind(settings) for kind in PROVIDER_TYPES)}
    for name in settings.allow_unsigned:
        if name not in loaded:
            raise ConfigError(
                f"MOORAGE_ALLOW_UNSIGNED: {name!r} is not a provider; write {' or '.join(sorted(loaded))}"
            )
    return loaded
