"""POST /webhooks/{provider}: read, verify, record, wake, respond."""

import asyncio
import hashlib
import random
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import Receive

from moorage import ids, metrics, webhook_url_keys
from moorage.errors import KeysStale, Refused
from moorage.model import Wake
from moorage.provider_types import VerifiedDelivery
from moorage.settings import Settings
from providers.base import Provider
from receiver import deliveries, request_body
from receiver.recorder import DeliveryRecorder
from receiver.responses import Headers, Response
from worker.publish import WakeRelay

PREFIXES: Final = ("/webhooks/", "/api/webhooks/", "/api/v1/webhooks/")
MAX_NAME_CHARS: Final = 60


def parse_provider_name(path: str) -> str | None:
    """Return the provider's name in a webhook's path, with or without a trailing slash; None for another path."""
    for prefix in PREFIXES:
        if path.startswith(prefix):
            name = path.removeprefix(prefix).removesuffix("/")
            return name if name and "/" not in name else None
    return None


class WebhookReceiver:
    def __init__(
        self, settings: Settings, providers: Mapping[str, Provider], recorder: DeliveryRecorder, relay: WakeRelay
    ) -> None:
        self._max_bytes = settings.webhook_max_bytes
        self.providers = providers
        self._recorder = recorder
        self._relay = relay
        self._answer_seconds = settings.constants.answer_seconds
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self.in_flight = request_body.BytesInFlight(settings.constants.bytes_in_flight)

    def get_enabled_provider(self, name: str) -> Provider:
        provider = self.providers.get(name)
        if provider is None:
            known = ", ".join(sorted(self.providers))
            raise Refused(f"unknown provider {name[:MAX_NAME_CHARS]!r}: use one of {known}", status=404)
        if not provider.is_enabled:
            remedy = f"set {provider.webhook_setting}, or add it to MOORAGE_ALLOW_UNSIGNED"
            raise Refused(f"{name} is not enabled: {remedy}", status=404)
        return provider

    async def receive(self, name: str, headers: Headers, receive: Receive, *, query: bytes = b"") -> Response:
        """Record a webhook, respond after the commit. Raises Refused: 4xx, not recorded; Transient: 503, retry."""
        provider = self.get_enabled_provider(name)
        signature = provider.check_headers(headers, time.time())  # before any byte of the body is held
        limit = min(self._max_bytes, provider.max_delivery_bytes or self._max_bytes)
        async with request_body.BodyReader(receive, headers, limit, self.in_flight) as body:
            verified = await self._verify(provider, signature, body)
            key_sha256 = webhook_url_keys.hash_key_in_query(query.decode("latin-1")) if query else None
            recorded = await self._recorder.record(_build_delivery(provider, verified, headers, body, key_sha256))
            metrics.WEBHOOK_BYTES.inc(len(body))
        if recorded.is_pending:
            self._relay.enqueue(Wake("ingest", recorded.id))
        (metrics.WEBHOOKS_RECORDED if recorded.is_new else metrics.WEBHOOKS_KNOWN).labels(name).inc()
        status = provider.new_delivery_status if recorded.is_new else provider.known_delivery_status
        outcome = "recorded" if recorded.is_new else "known"
        return Response(status, f'{{"id": "{recorded.id}", "status": "{outcome}"}}'.encode())

    async def _verify(self, provider: Provider, signature: Any, body: bytes) -> VerifiedDelivery:
        """Return what a signature authenticates. Raises BadSignature; KeysStale: keys not fetched in time (503)."""
        try:
            return provider.verify_body(signature, body)
        except KeysStale:
            await self._fetch_keys(provider)
        return provider.verify_body(signature, body)

    async def _fetch_keys(self, provider: Provider) -> None:
        """Fetch public keys off the event loop, once for concurrent requests, which wait at most `answer_seconds`."""
        fetch = self._fetches.get(provider.name)
        if fetch is None or fetch.done():
            fetch = asyncio.create_task(asyncio.to_thread(provider.fetch_keys))
            self._fetches[provider.name] = fetch
        await asyncio.wait({fetch}, timeout=self._answer_seconds)


def _build_delivery(
    provider: Provider, verified: VerifiedDelivery, headers: Headers, body: bytes, key_sha256: str | None
) -> deliveries.NewDelivery:
    redacted = webhook_url_keys.redact_keys(body)
    digest = hashlib.sha256(redacted).hexdigest()  # of the recorded bytes, which the audit can verify
    return deliveries.NewDelivery(
        # Not from the kernel: that call releases the GIL, and the event loop waits while the relay has it. No secret.
        id=ids.uuid7(random_bits=random.getrandbits(80)),
        provider=provider.name,
        webhook_id=deliveries.choose_webhook_id(verified.webhook_id, digest),
        headers=provider.select_headers(headers),
        body=redacted,
        body_sha256=digest,
        key_sha256=key_sha256,
    )
