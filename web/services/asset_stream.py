"""Streams or signs files of one bucket. Loaded by name on first use, if at all: it imports boto3."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from moorage import logs
from moorage.errors import StorageRefused, StorageUnavailable
from moorage.settings import Settings
from storage import s3
from storage.errors import ObjectMissing
from storage.s3 import ObjectReader
from web.http import problems
from web.http.problems import unavailable

T = TypeVar("T")

log = logs.get_logger(__name__)

MAX_STREAMS: Final = 64
MAX_THREADS: Final = 8  # used for one chunk at a time: a slow client occupies none
OPEN_SECONDS: Final = 5.0
CHUNK_BYTES: Final = 1 << 16  # the server buffers about fifty of them for a client that reads nothing
# Longer than the redirect is cached. Temporary credentials are refreshed 10 minutes before they expire, and their URLs.
SIGNED_SECONDS: Final = 600
STALL_SECONDS: Final = 30.0  # limit for sending one chunk: without a token, stalled clients could occupy all streams


class AssetStreamer:
    """Reads a bounded number of files from storage, with one chunk of each in memory, and signs URLs of others."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        self._storage, self._bucket = s3.ObjectStore(settings), bucket
        self._executor = ThreadPoolExecutor(MAX_THREADS, "asset")
        self._slots = asyncio.Semaphore(MAX_STREAMS)

    async def build_response(
        self, key: str, byte_range: tuple[int, int] | None, status: int, headers: Mapping[str, str]
    ) -> Response:
        """Return a response that streams an object. Raises Problem: 404 no such object, 503 unavailable or limit."""
        if self._slots.locked():
            raise unavailable("too many open streams, retry")
        with contextlib.ExitStack() as cleanup:
            await self._slots.acquire()
            cleanup.callback(self._slots.release)
            stack = contextlib.ExitStack()
            opened = self._storage.open_object(self._bucket, key, byte_range=byte_range)
            body = await self._run_within_limit(key, lambda: stack.enter_context(opened))
            cleanup.callback(self._executor.submit, stack.close)
            return AssetResponse(self._chunks(body), status, headers, cleanup.pop_all().close)

    async def build_signed_url(self, key: str) -> str:
        """Return a URL of an object that expires. Raises Problem: 503 no credentials. May ask for new ones first."""
        return await self._run_within_limit(key, lambda: self._storage.presign_get(self._bucket, key, SIGNED_SECONDS))

    async def _run_within_limit(self, key: str, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await self._in_thread(work)
        except ObjectMissing as error:
            log.error("asset.missing", key=key)  # a row names it: rule 4 is violated, or it was deleted at this moment
            raise problems.not_found("file") from error
        except (StorageUnavailable, StorageRefused, TimeoutError) as error:
            log.warning("asset.storage_unavailable", key=key, error=str(error))
            raise unavailable("storage unavailable, retry") from error

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _chunks(self, body: ObjectReader) -> AsyncIterator[bytes]:
        while chunk := await self._in_thread(lambda: body.read(CHUNK_BYTES)):
            yield chunk

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class AssetResponse(StreamingResponse):
    """A streamed response that releases its resources in any case, even if the client reads nothing."""

    def __init__(
        self, chunks: AsyncIterator[bytes], status: int, headers: Mapping[str, str], release: Callable[[], Any]
    ) -> None:
        super().__init__(chunks, status, headers)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_stalled = False

        async def send_within_limit(message: Message) -> None:
            nonlocal is_stalled
            async with asyncio.timeout(STALL_SECONDS) as limit:
                try:
                    await send(message)
                finally:
                    is_stalled = limit.expired()

        try:
            await super().__call__(scope, receive, send_within_limit)
        except TimeoutError:
            if not is_stalled:
                raise
            log.info("asset.stalled", stall_seconds=STALL_SECONDS)  # the server closes the connection
        finally:
            self._release()
