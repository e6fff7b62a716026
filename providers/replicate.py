"""
Replicate: Standard Webhooks `v1`; the body is the bare prediction, as GET /v1/predictions/{id} gives it.

Sources: replicate-python (webhook.py, prediction.py, helpers.py), replicate-javascript (index.d.ts), read 2026-11;
replicate.com/docs/topics/webhooks and /docs/topics/predictions.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlencode

from moorage.errors import ConfigError, DownloadRefused, ProviderRefused, ProviderUnavailable, Unreadable
from moorage.model import Listed, Report, Status, Verified
from moorage.settings import Settings
from moorage.text import storable
from moorage.urls import Hosts, host_port
from providers import bodies, files, signatures
from providers.base import Provider
from providers.polling import Api
from providers.signatures import Headers

# `aborted` (the deadline passed before the start) is terminal, and missing in both Python clients' types.
_STATUSES: Final[dict[str, Status]] = {
    "starting": "queued",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
    "aborted": "cancelled",
}

_LIST_BYTES: Final = 128 * 2**20  # a page holds 100 predictions, each with its output, which may be inline
_MAX_PAGES: Final = 2000  # 200,000 predictions


class Replicate(Provider):
    """replicate.com, or whatever answers like it at REPLICATE_API_URL."""

    name = "replicate"
    enabled_by = "REPLICATE_WEBHOOK_SECRET"
    ordered_by = "REPLICATE_API_TOKEN"
    output_life_seconds: ClassVar[float | None] = 3600.0  # inputs, outputs, logs of API predictions are deleted then
    kept_headers = Provider.kept_headers | {"webhook-id", "webhook-timestamp"}

    def __init__(self, settings: Settings) -> None:
        secrets = signatures.standard_secrets(settings.replicate_webhook_secret, "REPLICATE_WEBHOOK_SECRET")
        hosts = Hosts(settings.replicate_output_hosts, settings.egress_allow, setting="REPLICATE_OUTPUT_HOSTS")
        super().__init__(settings, hosts=hosts, secrets=secrets)
        self._api_url = settings.replicate_api_url
        self._token_header: dict[str, str] = {}
        self._api: Api | None = None
        if settings.replicate_api_token:
            _check_api_url(self._api_url, hosts)
            value = f"Bearer {_token(settings.replicate_api_token.get_secret_value())}"
            self._token_header = {"Authorization": value}
            self._api = Api("Replicate", ("Authorization", value), max_bytes=settings.webhook_max_bytes)

    @property
    def can_poll(self) -> bool:
        """Return whether REPLICATE_API_TOKEN is set."""
        return self._api is not None

    def _verify(self, headers: Headers, body: bytes, now: float) -> Verified:
        return Verified(signatures.standard_v1(headers, body, now, secrets=self._secrets))

    def parse(self, body: bytes) -> Report:
        """
        Return what a prediction object says; a training, which has the same fields, is read alike.

        Raises:
            Unreadable: it is none.
        """
        prediction = bodies.json_object(body)
        raw_status = bodies.word(prediction.get("status"), "status")
        status = _STATUSES.get(raw_status, "unknown")
        completed_at = bodies.moment_or_none(prediction.get("completed_at"))
        return Report(
            external_id=bodies.external_id(prediction.get("id"), "id"),
            status=status,
            raw_status=raw_status,
            outputs=files.found(prediction.get("output"), "output", self.allows) if status == "succeeded" else (),
            error=bodies.text_or_none(prediction.get("error")),
            data_removed=prediction.get("data_removed") is True,
            completed_at=completed_at,
            expires_at=self._end_of_life(completed_at),
            model=_model(prediction),
        )

    def poll(self, external_id: str, model: str | None = None) -> Report:  # noqa: ARG002 (the id is enough here)
        """Ask GET /v1/predictions/{id}; raises ProviderUnavailable and ProviderRefused as `Provider.poll` says."""
        if self._api is None:
            raise ProviderRefused("Replicate cannot be asked: set REPLICATE_API_TOKEN")
        if external_id in ("", ".", ".."):  # as a step of a path these would name something else
            raise ProviderRefused(f"{external_id!r} is not the id of a prediction")
        body = self._api.get(f"{self._api_url}/v1/predictions/{quote(external_id, safe='', errors='replace')}")
        try:
            report = self.parse(body)
        except Unreadable as error:
            raise ProviderUnavailable(f"Replicate answered 200 with what is no prediction: {error}") from error
        if report.external_id != external_id:
            raise ProviderUnavailable(f"Replicate answered about {report.external_id} when asked about another")
        return report

    def list_since(self, since: datetime) -> Iterator[list[Listed]]:
        """Go through GET /v1/predictions?created_after=, 100 a page; raises as `Provider.list_since` says."""
        if self._api is None:
            raise ProviderRefused("Replicate cannot be asked what it made: set REPLICATE_API_TOKEN")
        start = f"{self._api_url}/v1/predictions"
        url = f"{start}?{urlencode({'created_after': since.astimezone(UTC).isoformat()})}"
        asked: set[str] = set()
        while url not in asked:
            if len(asked) == _MAX_PAGES:
                raise ProviderRefused(f"Replicate lists more than {_MAX_PAGES} pages: ask for a shorter time")
            asked.add(url)
            page, following = _page(self._api.get(url, max_bytes=_LIST_BYTES))
            yield page
            if following is None:
                return
            if not _continues(following, start):
                raise ProviderRefused("Replicate's list goes on at another address, where the token is not sent")
            url = following
        raise ProviderUnavailable("Replicate's list goes round in a circle")

    def download_headers(self, url: str) -> dict[str, str]:
        """Return the token for the allowed hosts (some files need it), over https: or to an exact exempt address."""
        if not self._token_header or self.allows(url) is not None or not self.hosts.is_safe_for_secrets(url):
            return {}
        return dict(self._token_header)

    def _end_of_life(self, completed_at: datetime | None) -> datetime | None:
        if completed_at is None or self.output_life_seconds is None:
            return None
        try:
            return completed_at + timedelta(seconds=self.output_life_seconds)
        except OverflowError:  # the last hour of the year 9999
            return None


def _page(body: bytes) -> tuple[list[Listed], str | None]:
    """Return the predictions of a page and where the next one is; raises ProviderUnavailable when it is none."""
    try:
        page = bodies.json_object(body)
        results, following = page.get("results"), page.get("next")
        if not isinstance(results, list) or not isinstance(following, str | None):
            raise Unreadable("results is no list, or next no address")
        return [_listed(item) for item in results], following or None
    except Unreadable as error:
        raise ProviderUnavailable(f"Replicate answered 200 with what is no list of predictions: {error}") from error


def _listed(item: object) -> Listed:
    if not isinstance(item, dict):
        raise Unreadable("an item of results is no prediction")
    webhook = item.get("webhook")
    return Listed(
        external_id=bodies.external_id(item.get("id"), "id"),
        raw_status=bodies.word(item.get("status"), "status"),
        webhook=webhook if isinstance(webhook, str) and webhook else None,
        model=_model(item),
    )


def _continues(url: str, start: str) -> bool:
    """Return whether a page's address is the list's own, with another query: the token goes along."""
    try:
        is_same_host = host_port(url) == host_port(start)
    except DownloadRefused:
        return False
    return is_same_host and url.partition("?")[0] == start


def _model(prediction: dict[str, Any]) -> str | None:
    model = prediction.get("model")
    return storable(model, 200) if isinstance(model, str) and model else None


def _check_api_url(url: str, hosts: Hosts) -> None:
    try:
        is_safe = hosts.is_safe_for_secrets(url)
    except DownloadRefused as error:
        raise ConfigError(f"REPLICATE_API_URL: {error}; write https://api.replicate.com") from error
    if not is_safe:
        raise ConfigError(
            "REPLICATE_API_URL would send the token unencrypted: write an https: address, or name the exact address and"
            " port in MOORAGE_EGRESS_ALLOW"
        )


def _token(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError("REPLICATE_API_TOKEN holds a character that no token has: write it as Replicate shows it")
    return text
