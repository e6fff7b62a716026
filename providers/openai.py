"""
OpenAI: Standard Webhooks `v1` that name a response and no more; its pictures come by GET, as base64.

Sources: openai-python (lib/_webhooks.py, types/webhooks, types/responses), openai-openapi, guides/webhooks; read
2026-11. A project's webhooks tell of all it does: what is no response of the Responses API is recorded and ignored.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final
from urllib.parse import quote

from pydantic import SecretStr

from moorage.errors import ConfigError, DownloadRefused, NotOurs, ProviderRefused, ProviderUnavailable, Unreadable
from moorage.model import Found, Report, Status, Verified
from moorage.settings import Settings
from moorage.text import storable
from moorage.urls import Hosts
from providers import bodies, files, signatures
from providers.base import Provider
from providers.polling import Api
from providers.signatures import Headers

_STATUSES: Final[dict[str, Status]] = {
    "queued": "queued",
    "in_progress": "running",
    "completed": "succeeded",
    "failed": "failed",
    "incomplete": "failed",
    "cancelled": "cancelled",
}
_ENDS: Final = frozenset({"completed", "failed", "incomplete", "cancelled"})
_ANSWER_BYTES: Final = 128 * 2**20  # a response holds its pictures


class OpenAI(Provider):
    """The Responses API with the image generation tool, at OPENAI_API_URL."""

    name = "openai"
    enabled_by = "OPENAI_WEBHOOK_SECRET"
    ordered_by = "OPENAI_API_KEY"
    kept_headers: ClassVar[frozenset[str]] = Provider.kept_headers | {"webhook-id", "webhook-timestamp"}

    def __init__(self, settings: Settings) -> None:
        hosts = Hosts(settings.openai_output_hosts, settings.egress_allow, setting="OPENAI_OUTPUT_HOSTS")
        super().__init__(settings, hosts=hosts, secrets=_secrets(settings.openai_webhook_secret))
        self._api_url = settings.openai_api_url
        self._api: Api | None = None
        if settings.openai_api_key:
            _check_api_url(self._api_url, hosts)
            value = f"Bearer {_key(settings.openai_api_key.get_secret_value())}"
            self._api = Api("OpenAI", ("Authorization", value), max_bytes=_ANSWER_BYTES)

    @property
    def can_poll(self) -> bool:
        """Return whether OPENAI_API_KEY is set."""
        return self._api is not None

    def _verify(self, headers: Headers, body: bytes, now: float) -> Verified:
        return Verified(signatures.standard_v1(headers, body, now, secrets=self._secrets))

    def parse(self, body: bytes) -> Report:
        """
        Return what an event says: that a response ended, not with what.

        Raises:
            Unreadable: it is no event.
            NotOurs: it tells of something else than a response.
        """
        event = bodies.json_object(body)
        kind = bodies.word(event.get("type"), "type")
        subject, _, end = kind.partition(".")
        if subject != "response" or end not in _ENDS:
            raise NotOurs(f"an event {kind} tells of no image or video")
        data = event.get("data")
        if not isinstance(data, dict):
            raise Unreadable("data is missing or is no object")
        return Report(
            external_id=bodies.external_id(data.get("id"), "data.id"),
            status=_STATUSES[end],
            raw_status=kind,
            error=None if self.can_poll else "set OPENAI_API_KEY",
            needs_fetch=True,
        )

    def poll(self, external_id: str, model: str | None = None) -> Report:  # noqa: ARG002 (the id is enough here)
        """Ask GET /v1/responses/{id}; raises ProviderUnavailable and ProviderRefused as `Provider.poll` says."""
        if self._api is None:
            raise ProviderRefused("OpenAI cannot be asked: set OPENAI_API_KEY")
        if external_id in ("", ".", ".."):  # as a step of a path these would name something else
            raise ProviderRefused(f"{external_id!r} is not the id of a response")
        body = self._api.get(f"{self._api_url}/v1/responses/{quote(external_id, safe='', errors='replace')}")
        try:
            report = self._response(bodies.json_object(body))
        except Unreadable as error:
            raise ProviderUnavailable(f"OpenAI answered 200 with what is no response: {error}") from error
        if report.external_id != external_id:
            raise ProviderUnavailable(f"OpenAI answered about {report.external_id} when asked about another")
        return report

    def _response(self, response: dict[str, Any]) -> Report:
        raw_status = bodies.word(response.get("status"), "status")
        status = _STATUSES.get(raw_status, "unknown")
        model = response.get("model")
        return Report(
            external_id=bodies.external_id(response.get("id"), "id"),
            status=status,
            raw_status=raw_status,
            outputs=tuple(self._pictures(response.get("output"))) if status == "succeeded" else (),
            error=_reason(response),
            model=storable(model, 200) if isinstance(model, str) and model else None,
        )

    def _pictures(self, items: object) -> Iterator[Found]:
        """Yield the results of the image generation calls; one that failed has none."""
        for place, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, dict) or item.get("type") != "image_generation_call":
                continue
            path, result = f"output[{place}].result", item.get("result")
            if isinstance(result, str) and result:
                yield from files.found(result, path, self.allows) or (files.of_base64(path, result),)


def _reason(response: dict[str, Any]) -> str | None:
    """Return why a response failed, or is incomplete."""
    error = bodies.text_or_none(response.get("error"))
    details = response.get("incomplete_details")
    return error or (bodies.text_or_none(details.get("reason")) if isinstance(details, dict) else None)


def _secrets(given: Iterable[SecretStr]) -> tuple[bytes, ...]:
    """Decode the secrets; without whsec_ OpenAI's own library takes one as text, so that base64 would be a guess."""
    secrets = tuple(given)
    for place, one in enumerate(secrets, 1):
        if not one.get_secret_value().startswith("whsec_"):
            raise ConfigError(f"OPENAI_WEBHOOK_SECRET: secret {place} does not begin with whsec_: write it as shown")
    return signatures.standard_secrets(secrets, "OPENAI_WEBHOOK_SECRET")


def _check_api_url(url: str, hosts: Hosts) -> None:
    try:
        is_safe = hosts.is_safe_for_secrets(url)
    except DownloadRefused as error:
        raise ConfigError(f"OPENAI_API_URL: {error}; write https://api.openai.com") from error
    if not is_safe:
        raise ConfigError(
            "OPENAI_API_URL would send the key unencrypted: write an https: address, or name the exact address and port"
            " in MOORAGE_EGRESS_ALLOW"
        )


def _key(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError("OPENAI_API_KEY holds a character that no key has: write it as OpenAI shows it")
    return text
