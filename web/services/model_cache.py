"""What providers say of their models: asked in other threads, kept for ten minutes, longer while they are away."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from moorage import logs
from moorage.errors import ProviderUnavailable
from providers.base import Provider

log = logs.get_logger(__name__)

CacheKey = tuple[str, str, str]

TTL_SECONDS: Final = 600.0
FETCH_TIMEOUT_SECONDS: Final = (
    1.8  # of the 5 in which a request is answered; an order may ask twice, one after the other
)
MAX_THREADS: Final = 4
MAX_PENDING: Final = 32  # with those that wait for a thread: nobody's questions are to keep all others' waiting
MAX_CACHED: Final = 256


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    value: Any
    fetched_at: float  # monotonic


def describe_outage(provider: str, error: ProviderUnavailable) -> str:
    """Return that a provider cannot be asked now, without the address that was tried: that is for the log."""
    status = error.facts.get("status")
    return f"{provider} cannot be asked now: " + (f"it answered {status}" if status else "there was no answer to use")


class ModelCache:
    """
    Models and schemas by provider.

    Each question is asked once at a time, so that a provider that hangs holds four threads and no request for long.
    """

    def __init__(
        self, *, fetch_timeout_seconds: float = FETCH_TIMEOUT_SECONDS, ttl_seconds: float = TTL_SECONDS
    ) -> None:
        self._fetch_timeout_seconds = fetch_timeout_seconds
        self._ttl_seconds = ttl_seconds
        self._entries: OrderedDict[CacheKey, _CacheEntry] = OrderedDict()
        self._pending: dict[CacheKey, Future[Any]] = {}
        self._executor = ThreadPoolExecutor(MAX_THREADS, "catalogue")

    async def get_schema(self, provider: Provider, model: str) -> Mapping[str, Any] | None:
        """
        Return the JSON Schema of a model's input, None where the provider offers none.

        Raises:
            ProviderUnavailable: it was never told, and cannot be had now.
            ProviderRefused: there is no such model.
        """
        key = (provider.name, "schema", model)
        found: Mapping[str, Any] | None = await self._get_or_fetch(key, lambda: provider.get_input_schema(model))
        return found

    async def get_models(self, provider: Provider, kind: str) -> list[dict[str, Any]]:
        """
        Return a provider's models of a kind, as `Provider.models` does.

        Raises:
            ProviderUnavailable, ProviderRefused: as `schema`.
        """
        found: list[dict[str, Any]] = await self._get_or_fetch(
            (provider.name, "models", kind), lambda: provider.list_models(kind)
        )
        return found

    def close(self) -> None:
        """Ask nothing any more; what is being asked ends by its own limits."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _get_or_fetch(self, key: CacheKey, ask: Callable[[], Any]) -> Any:
        kept = self._entries.get(key)
        if kept is not None and time.monotonic() - kept.fetched_at < self._ttl_seconds:
            return kept.value
        try:
            return await self._fetch(key, ask)
        except ProviderUnavailable as error:
            log.warning("catalogue.provider_away", provider=key[0], what=key[1], model=key[2], error=str(error))
            if kept is None:
                raise
            return kept.value

    async def _fetch(self, key: CacheKey, ask: Callable[[], Any]) -> Any:
        """Ask unless it is being asked already; the answer is kept also when it comes too late for this request."""
        asking = self._pending.get(key)
        if asking is None:
            if len(self._pending) >= MAX_PENDING:
                raise ProviderUnavailable("too much is being asked already")
            asking = self._pending[key] = self._executor.submit(ask)
            loop = asyncio.get_running_loop()
            asking.add_done_callback(lambda done: loop.call_soon_threadsafe(self._store, key, done))
        try:
            async with asyncio.timeout(self._fetch_timeout_seconds):
                return await asyncio.shield(asyncio.wrap_future(asking))
        except TimeoutError as error:
            raise ProviderUnavailable(f"{key[0]} did not answer within {self._fetch_timeout_seconds:g} s") from error

    def _store(self, key: CacheKey, done: Future[Any]) -> None:
        self._pending.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._entries[key] = _CacheEntry(done.result(), time.monotonic())
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_CACHED:
            self._entries.popitem(last=False)
