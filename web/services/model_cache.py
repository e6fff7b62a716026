"""Cache of providers' models and schemas: fetched in threads, fresh for ten minutes, stale while unavailable."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from moorage import logs
from moorage.errors import ProviderUnavailable
from providers.base import Provider

log = logs.get_logger(__name__)

CacheKey = tuple[str, str, str]  # provider, "schema" or "models", model or kind

TTL_SECONDS: Final = 600.0
FETCH_TIMEOUT_SECONDS: Final = 1.8  # of the 5 s for a response; a job request may fetch twice in sequence
MAX_THREADS: Final = 4
MAX_PENDING: Final = 32  # fetches in flight and queued: bounds the wait behind one client's many unknown models
MAX_CACHED: Final = 256


def describe_outage(provider: str, error: ProviderUnavailable) -> str:
    """Return a message for clients, without the provider's URL (which is in the log)."""
    status = error.facts.get("status")
    return f"{provider} is unavailable: " + (f"status {status}" if status else "no usable response")


class ModelCache:
    """Concurrent requests for one key share a fetch; a provider that hangs delays each by FETCH_TIMEOUT_SECONDS."""

    def __init__(self) -> None:
        self._entries: OrderedDict[CacheKey, tuple[Any, float]] = OrderedDict()  # value, monotonic time of the fetch
        self._pending: dict[CacheKey, Future[Any]] = {}
        self._executor = ThreadPoolExecutor(MAX_THREADS, "model-cache")

    async def get_schema(self, provider: Provider, model: str) -> Mapping[str, Any] | None:
        """Return a model's JSON Schema, if published. Raises ProviderUnavailable; ProviderRefused: no such model."""
        key = (provider.name, "schema", model)
        schema: Mapping[str, Any] | None = await self._get_or_fetch(key, lambda: provider.get_input_schema(model))
        return schema

    async def get_models(self, provider: Provider, kind: str) -> list[dict[str, Any]]:
        """Return a provider's models of a kind, as `Provider.describe_models` does; raises as `get_schema` does."""
        key = (provider.name, "models", kind)
        models: list[dict[str, Any]] = await self._get_or_fetch(key, lambda: provider.describe_models(kind))
        return models

    def close(self) -> None:
        """Start no more fetches; running ones end by their own timeouts."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _get_or_fetch(self, key: CacheKey, fetch: Callable[[], Any]) -> Any:
        value, fetched_at = self._entries.get(key, (None, None))
        if fetched_at is not None and time.monotonic() - fetched_at < TTL_SECONDS:
            return value
        try:
            return await self._fetch(key, fetch)
        except ProviderUnavailable as error:
            provider, what, model = key
            log.warning("model_cache.provider_unavailable", provider=provider, what=what, model=model, error=str(error))
            if fetched_at is None:
                raise
            return value

    async def _fetch(self, key: CacheKey, fetch: Callable[[], Any]) -> Any:
        """Join or start the fetch of a key; its result is cached even if it arrives too late for this request."""
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise ProviderUnavailable("too many requests to providers are pending")
            pending = self._pending[key] = self._executor.submit(fetch)
            loop = asyncio.get_running_loop()
            pending.add_done_callback(lambda future: loop.call_soon_threadsafe(self._store, key, future))
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                return await asyncio.shield(asyncio.wrap_future(pending))
        except TimeoutError as error:
            raise ProviderUnavailable(f"{key[0]} did not respond within {FETCH_TIMEOUT_SECONDS:g} s") from error

    def _store(self, key: CacheKey, future: Future[Any]) -> None:
        self._pending.pop(key, None)
        if future.cancelled() or future.exception() is not None:
            return
        self._entries[key] = (future.result(), time.monotonic())
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_CACHED:
            self._entries.popitem(last=False)
