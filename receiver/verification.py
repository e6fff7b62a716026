"""Verifies a webhook; where a provider's public keys are to be fetched first, off the event loop and once for all."""

import asyncio
import time
from typing import Final

from moorage.errors import KeysStale
from moorage.provider_types import VerifiedDelivery
from providers.base import Provider
from receiver.responses import Headers


class SignatureVerifier:
    """Judges webhooks; those that wait for keys wait for one fetch a provider, no longer than there is to answer."""

    def __init__(self, *, answer_seconds: float) -> None:
        self._answer_seconds: Final = answer_seconds
        self._fetches: dict[str, asyncio.Task[None]] = {}

    async def verify(self, provider: Provider, headers: Headers, body: bytes) -> VerifiedDelivery:
        """
        Return what a webhook's signature vouches for.

        Raises:
            BadSignature: nothing; it is not rightly signed.
            KeysStale: the keys could not be had in time: 503.
        """
        try:
            return provider.verify(headers, body, time.time())
        except KeysStale:
            await self._fetch_keys(provider)
        return provider.verify(headers, body, time.time())

    async def _fetch_keys(self, provider: Provider) -> None:
        running = self._fetches.get(provider.name)
        if running is None or running.done():
            running = asyncio.create_task(asyncio.to_thread(provider.fetch_keys))
            self._fetches[provider.name] = running
        await asyncio.wait({running}, timeout=self._answer_seconds)
