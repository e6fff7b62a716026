"""One file per provider: verification and parsing of webhooks, polling, submission. Light to import."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from moorage.errors import ConfigError
from moorage.setting_types import suggest
from moorage.settings import Settings
from providers import declarations
from providers.base import Provider
from providers.bfl import BflProvider
from providers.declarations import Declaration
from providers.declared import DeclaredProvider
from providers.fal import Fal
from providers.openai import OpenAI
from providers.replicate import Replicate
from providers.signature_verifiers import STANDARD_HEADERS
from providers.standard import Standard

PROVIDER_TYPES: Final[tuple[Callable[[Settings], Provider], ...]] = (Fal, OpenAI, Replicate, Standard)
# What `api` of a declaration stands for: the type, and its settings for URL, token and what webhooks are verified with.
_COMPATIBLE: Final[Mapping[str, tuple[type[Provider], str, str, str]]] = {
    "fal": (Fal, "fal_queue_url", "fal_key", "fal_user_id"),
    "openai": (OpenAI, "openai_api_url", "openai_api_key", "openai_webhook_secret"),
    "replicate": (Replicate, "replicate_api_url", "replicate_api_token", "replicate_webhook_secret"),
}
# What `submit` of a declaration stands for: a declared provider that also submits.
_SUBMITTING: Final[Mapping[str, type[DeclaredProvider]]] = {"bfl": BflProvider}
_TAKEN: Final = frozenset({"placeholder", "keep"})  # of predictions without a provider, and of a pause


def load(settings: Settings) -> Mapping[str, Provider]:
    """Return every provider by name, enabled or not; raises ConfigError for an invalid setting or declaration."""
    loaded = {provider.name: provider for provider in (kind(settings) for kind in PROVIDER_TYPES)}
    if settings.providers_file:
        declared = declarations.read_file(settings.providers_file, {*loaded, *_TAKEN})
        text = settings.providers_file.read_text(encoding="utf-8")
        loaded |= {name: _build(name, declaration, settings, text) for name, declaration in declared.items()}
    for setting in ("allow_unsigned", "ignore_unregistered"):
        for name in getattr(settings, setting):
            _require_name(f"MOORAGE_{setting.upper()}", name, loaded, "is not a provider")
    submitting = {name for name, provider in loaded.items() if provider.submit_setting}
    for key in settings.in_flight:
        problem = "is not a provider that takes submissions"
        _require_name("MOORAGE_IN_FLIGHT", key.partition(":")[0], submitting, problem)
    return loaded


def _require_name(setting: str, name: str, known: Collection[str], problem: str) -> None:
    if name not in known:
        hint = suggest(name, known) or f"write {' or '.join(sorted(known))}"
        raise ConfigError(f"{setting}: {name!r} {problem}: {hint}")


def _build(name: str, declaration: Declaration, settings: Settings, text: str) -> Provider:
    """Return a provider whose class attributes, which messages name, are those of its declaration."""

    def locate(*keys: str) -> str:  # without the path: an application may read it
        line = declarations.find_line(text, (name, *keys))
        return f"{'.'.join((name, *keys))} in line {line} of MOORAGE_PROVIDERS_FILE"

    webhook, life_seconds = declaration.webhook, declaration.output_life_seconds
    headers = (webhook.headers if webhook else ()) or STANDARD_HEADERS
    signed = headers[:-1] if webhook and webhook.signature in ("standard", "digest") else ()
    attributes: dict[str, Any] = {
        "name": name,
        "label": declaration.label or name,
        "hosts_setting": locate("output_hosts"),
        "url_setting": locate(*(("base_url",) if declaration.api else ("poll", "url"))),
        "models_setting": locate("models"),
        "webhook_setting": " or ".join(webhook.secrets if webhook else ()) or locate("webhook"),
        "submit_setting": declaration.token,
        **({"output_lifetime_seconds": life_seconds} if life_seconds else {}),
        "default_first_poll_seconds": min(declaration.first_poll_seconds, (life_seconds or 1e9) / 10),
        "webhook_headers": headers,
        "recorded_headers": (Provider.recorded_headers | set(signed)) - set(headers[-1:]),
    }
    if declaration.api is None:
        attributes |= {"sends_webhooks": webhook is not None, "jwks_setting": locate("webhook", "jwks")}
        attributes["needs_model"] = declaration.poll is not None and "{model}" in declaration.poll.url
        if declaration.submit and declaration.poll:
            attributes["submit_setting"] = declaration.poll.token
        kind = _SUBMITTING.get(declaration.submit) if declaration.submit else DeclaredProvider
        if kind is None:
            raise ConfigError(f"{locate('submit')} is not known: write {' or '.join(_SUBMITTING)}")
        declared: Provider = type(name, (kind,), attributes)(settings, declaration)
        return declared
    api, url, token, secrets = _COMPATIBLE[declaration.api]
    tokens = declarations.read_secrets([declaration.token or ""])
    given: dict[str, Any] = {
        url: declaration.base_url,
        token: tokens[0] if tokens else None,
        f"{declaration.api}_output_hosts": declaration.output_hosts,
        f"{declaration.api}_models": declaration.models,
        secrets: declarations.read_secrets(webhook.secrets) if webhook else (),
    }
    if declaration.api == "fal" and webhook:
        given |= {secrets: webhook.users, "fal_openapi": None}
        settings = settings.with_constants(fal_jwks_url=webhook.jwks)
    compatible: Provider = type(name, (api,), attributes)(settings.model_copy(update=given))
    return compatible
