"""Files on their way in: spooled to unnamed temporary files, a bounded number at once, and kept."""

import asyncio
import contextlib
import functools
import importlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar, cast

from starlette.requests import ClientDisconnect, Request

from db import uploads as rows
from db.uploads import Upload
from media.limits import Limits
from moorage import logs
from moorage.errors import InvalidMedia, MoorageError, StorageRefused
from moorage.failpoints import failpoint
from moorage.settings import Settings
from tasks import uploads
from web.http.problems import Problem, unavailable
from web.services.database import DatabaseThreads

if TYPE_CHECKING:
    from storage.s3 import ObjectStore

T = TypeVar("T")

log = logs.get_logger(__name__)

MAX_CONCURRENT_UPLOADS: Final = 16  # requests whose files are being read or kept
MAX_UPLOADS_PER_OWNER: Final = 4  # so that one owner's do not take the place of all others'
MAX_STORAGE_THREADS: Final = 2  # examined at once, each in a process of its own
MAX_DISK_THREADS: Final = 2
IDLE_SECONDS: Final = 15.0
TOTAL_SECONDS: Final = 300.0
STORE_SECONDS: Final = 120.0  # with the wait for its turn
_BUFFER_BYTES: Final = 1 << 18


class SpooledFile:
    """A file that is being received. Whoever made it closes it, or gives it away to `Intake.keep`."""

    def __init__(self, file: BinaryIO, max_bytes: int, executor: ThreadPoolExecutor) -> None:
        self.file = file
        self.bytes = 0
        self._max_bytes = max_bytes
        self._executor = executor
        self._buffer = bytearray()

    async def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises Problem: 413 too large, 503 the disk is full."""
        self.bytes += len(chunk)
        if self.bytes > self._max_bytes:
            raise file_too_large(self._max_bytes)
        self._buffer += chunk
        if len(self._buffer) >= _BUFFER_BYTES:
            await self._flush_buffer()

    async def flush(self) -> None:
        """Write out what is still in memory."""
        await self._flush_buffer()

    async def _flush_buffer(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._write_to_disk, data)
        except OSError as error:
            log.error("upload.disk", error=str(error))
            raise unavailable("there is no room for the file now: send it again") from error

    def _write_to_disk(self, data: bytes | bytearray) -> None:
        self.file.write(data)
        self.file.flush()


class UploadSpool:
    """One process's room for incoming files. What decodes them is never this process: it takes webhooks too."""

    def __init__(self, settings: Settings) -> None:
        self.max_bytes = settings.upload_max_bytes
        self._settings = settings
        self._limits = uploads.upload_limits(Limits.from_settings(settings), settings.upload_max_bytes)
        self._storage_executor = ThreadPoolExecutor(MAX_STORAGE_THREADS, "upload")
        self._disk_executor = ThreadPoolExecutor(MAX_DISK_THREADS, "upload-disk")
        self._active: Counter[str | None] = Counter()

    @functools.cached_property
    def storage(self) -> "ObjectStore":
        """Return the way to storage: by name, because boto3 is much to load for a process that no file comes to."""
        return cast("ObjectStore", importlib.import_module("storage.s3").ObjectStore(self._settings))

    @contextlib.contextmanager
    def reserve(self, owner: str | None) -> Iterator[None]:
        """Hold a place for one request, of an owner or an application. Raises Problem: 503 when all are taken."""
        of_owner = self._active[owner]
        if self._active.total() >= MAX_CONCURRENT_UPLOADS or (owner is not None and of_owner >= MAX_UPLOADS_PER_OWNER):
            raise unavailable("too many files are coming in already: try again")
        self._active[owner] += 1
        try:
            yield
        finally:
            self._active -= Counter({owner: 1})  # what comes to none is forgotten

    def create_file(self) -> SpooledFile:
        """Return an empty file without a name, so that the kernel frees it with a killed process."""
        try:
            return SpooledFile(tempfile.TemporaryFile(), self.max_bytes, self._disk_executor)
        except OSError as error:
            log.error("upload.disk", error=str(error))
            raise unavailable("there is no room for the file now: send it again") from error

    async def store(self, threads: DatabaseThreads, incoming: SpooledFile, owner: str) -> tuple[Upload, datetime]:
        """
        Examine, strip, store and record a whole file, and close it; returns the upload and when it was recorded.

        Raises:
            Problem: 422 it is not taken, 503 storage, PostgreSQL or time is lacking. Then no row names it.
        """
        await incoming.flush()
        stored = await self.run_storage(
            lambda: uploads.sanitize_and_store(self.storage, incoming.file, owner=owner, limits=self._limits),
            incoming.file.close,
        )
        moment = await threads.run(lambda db: db.run(lambda conn: rows.add(conn, uploads.require_recent(stored))))
        failpoint("uploads.after_record")
        return stored.upload, moment

    async def run_storage(self, work: Callable[[], T], at_end: Callable[[], None] = lambda: None) -> T:
        """Return what `work` returns, done in a thread that talks to storage; `at_end` is called whatever happens."""
        future = self._storage_executor.submit(work)
        future.add_done_callback(lambda _: at_end())
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return await asyncio.wrap_future(future)
        except InvalidMedia as error:
            raise Problem(422, f"the file is not taken: {error}", errors=[_wrong(error)]) from error
        except TimeoutError as error:
            raise unavailable("too many files are being examined: send it again") from error
        except MoorageError as error:
            level = log.error if isinstance(error, StorageRefused) else log.warning
            level("upload.failed", error=str(error))
            raise unavailable("the file could not be stored now: send it again") from error

    def close(self) -> None:
        """Begin nothing any more."""
        for executor in (self._storage_executor, self._disk_executor):
            executor.shutdown(wait=False, cancel_futures=True)


async def read_chunks(request: Request) -> AsyncIterator[bytes]:
    """Give the body of a request as it comes. Raises Problem: 400 it was cut, 408 it came too slowly."""
    stream = request.stream()
    try:
        async with asyncio.timeout(TOTAL_SECONDS):
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return
                yield chunk
    except TimeoutError as error:
        raise Problem(408, f"the body stood still for {IDLE_SECONDS:g} s, or took {TOTAL_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before its body did: send it again") from error


def file_too_large(max_bytes: int) -> Problem:
    """Return the 413 of a file."""
    return Problem(413, f"the file is larger than {max_bytes} bytes (MOORAGE_UPLOAD_MAX_BYTES)")


def _wrong(error: InvalidMedia) -> dict[str, str]:
    return {"field": "file", "message": str(error)}
