"""Files of the public bucket through this process. Loaded only for MOORAGE_ASSETS=stream: it needs boto3."""

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
from web.http import ids
from web.http.problems import unavailable

T = TypeVar("T")

log = logs.get_logger(__name__)

MAX_STREAMS: Final = 64
MAX_THREADS: Final = 8  # taken for one chunk at a time: a slow reader holds none
OPEN_SECONDS: Final = 5.0
CHUNK_BYTES: Final = 1 << 16  # the server holds some fifty of them for a reader that reads nothing
STALL_SECONDS: Final = 30.0  # for a reader to take a chunk; nobody needs a token to hold one of the places


class AssetStreamer:
    """A bounded number of files being read from storage, a chunk in memory each."""

    def __init__(self, settings: Settings) -> None:
        self._storage = s3.ObjectStore(settings)
        self._executor = ThreadPoolExecutor(MAX_THREADS, "asset")
        self._streams = 0

    async def build_response(
        self, key: str, span: tuple[int, int] | None, status: int, headers: Mapping[str, str]
    ) -> Response:
        """
        Return an answer that streams an object, or its bytes from the first to the last of `span`.

        Raises:
            Problem: 404 without such an object, 503 when storage is away or too many files are read already.
        """
        if self._streams >= MAX_STREAMS:
            raise unavailable("too many files are being read: try again")
        with contextlib.ExitStack() as held:
            self._streams += 1
            held.callback(self._release_slot)
            stack, body = await self._open_within_limit(key, span)
            held.callback(self._executor.submit, stack.close)
            return AssetResponse(self._chunks(body), status, headers, held.pop_all().close)

    async def _open_within_limit(
        self, key: str, span: tuple[int, int] | None
    ) -> tuple[contextlib.ExitStack, ObjectReader]:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await self._in_thread(lambda: self._open(key, span))
        except ObjectMissing as error:
            log.error("asset.missing", key=key)  # a row names it: rule 4 is broken, or it was deleted this moment
            raise ids.not_found("file") from error
        except (StorageUnavailable, StorageRefused, TimeoutError) as error:
            log.warning("asset.storage_away", key=key, error=str(error))
            raise unavailable("storage is away: try again") from error

    def close(self) -> None:
        """Begin no read any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _release_slot(self) -> None:
        self._streams -= 1

    def _open(self, key: str, span: tuple[int, int] | None) -> tuple[contextlib.ExitStack, ObjectReader]:
        stack = contextlib.ExitStack()
        return stack, stack.enter_context(self._storage.open_object(self._storage.public_bucket, key, byte_range=span))

    async def _chunks(self, body: ObjectReader) -> AsyncIterator[bytes]:
        while chunk := await self._in_thread(lambda: body.read(CHUNK_BYTES)):
            yield chunk

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class AssetResponse(StreamingResponse):
    """A streamed answer that lets go of what it holds however it ends, also when nobody reads a byte of it."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        status: int,
        headers: Mapping[str, str],
        release: Callable[[], Any],
        *,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        super().__init__(chunks, status, headers)
        self._release = release
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, to its end or until a chunk is not taken for too long."""
        is_stalled = False

        async def within_time(message: Message) -> None:
            nonlocal is_stalled
            async with asyncio.timeout(self._stall_seconds) as limit:
                try:
                    await send(message)
                finally:
                    is_stalled = limit.expired()

        try:
            await super().__call__(scope, receive, within_time)
        except TimeoutError:
            if not is_stalled:
                raise
            log.info("asset.cut", stall_seconds=self._stall_seconds)  # the connection is closed
        finally:
            self._release()
