"""Verifies signatures; a provider's public keys are fetched off the event loop, once for concurrent requests."""

import asyncio
from typing import Any, Final

from moorage.errors import KeysStale
from moorage.provider_types import VerifiedDelivery
from providers.base import Provider


class SignatureVerifier:
    """Verifies webhooks. Requests that need keys share one fetch per provider and wait at most `answer_seconds`."""

    def __init__(self, *, answer_seconds: float) -> None:
        self._answer_seconds: Final = answer_seconds
        self._fetches: dict[str, asyncio.Task[None]] = {}

    async def verify(self, provider: Provider, signature: Any, body: bytes) -> VerifiedDelivery:
        """Return what a signature authenticates. Raises BadSignature; KeysStale: keys not fetched in time (503)."""
        try:
            return provider.verify_body(signature, body)
        except KeysStale:
            await self._fetch_keys(provider)
        return provider.verify_body(signature, body)

    async def _fetch_keys(self, provider: Provider) -> None:
        fetch = self._fetches.get(provider.name)
        if fetch is None or fetch.done():
            fetch = asyncio.create_task(asyncio.to_thread(provider.fetch_keys))
            self._fetches[provider.name] = fetch
        await asyncio.wait({fetch}, timeout=self._answer_seconds)
