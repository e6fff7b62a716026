"""Spools uploads to temporary files with bounded concurrency, and stores them."""

import asyncio
import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar, cast
from uuid import UUID

import db.uploads
from db import owner_limits, owner_token_revocations
from db.connection import Connection
from db.uploads import Upload
from media.limits import Limits
from moorage import logs
from moorage.errors import InvalidMedia, MoorageError, StorageRefused
from moorage.failpoints import failpoint
from moorage.local_errors import open_temporary_file, translate_local_errors
from moorage.owner_tokens import OwnerToken
from moorage.settings import Settings
from tasks import uploads
from web.http.problems import Problem, unavailable
from web.services.database import DatabaseThreads
from web.services.request_limits import RequestLimits

if TYPE_CHECKING:
    from storage.s3 import ObjectStore

T = TypeVar("T")

log = logs.get_logger(__name__)

MAX_CONCURRENT_UPLOADS: Final = 16  # requests whose files are being received or stored
MAX_UPLOADS_PER_OWNER: Final = 4
MAX_STORAGE_THREADS: Final = 2  # each decodes in a separate process
MAX_DISK_THREADS: Final = 2
STORE_SECONDS: Final = 120.0  # including the wait for a thread
_BUFFER_BYTES: Final = 1 << 18


class SpooledFile:
    """A file being received. The creator closes it, unless `UploadSpool.store` does."""

    def __init__(self, file: BinaryIO, max_bytes: int, executor: ThreadPoolExecutor) -> None:
        self.file = file
        self.bytes = 0
        self._max_bytes = max_bytes
        self._executor = executor
        self._buffer = bytearray()

    async def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises Problem: 413 too large; LocalFailure: the disk is full."""
        self.bytes += len(chunk)
        if self.bytes > self._max_bytes:
            raise file_too_large(self._max_bytes)
        self._buffer += chunk
        if len(self._buffer) >= _BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        with translate_local_errors("upload"):
            await asyncio.get_running_loop().run_in_executor(self._executor, self._write_to_disk, data)

    def _write_to_disk(self, data: bytes | bytearray) -> None:
        self.file.write(data)
        self.file.flush()


class UploadSpool:
    """Receives and stores uploads. Files are decoded in other processes: this one also receives webhooks."""

    def __init__(self, settings: Settings, database: DatabaseThreads) -> None:
        self.max_bytes = settings.upload_max_bytes
        self._settings = settings
        self._database = database
        self._limits = uploads.upload_limits(Limits.from_settings(settings), settings)
        self._storage_executor = ThreadPoolExecutor(MAX_STORAGE_THREADS, "upload")
        self._disk_executor = ThreadPoolExecutor(MAX_DISK_THREADS, "upload-disk")
        self._requests = RequestLimits(MAX_CONCURRENT_UPLOADS, MAX_UPLOADS_PER_OWNER)

    @functools.cached_property
    def storage(self) -> "ObjectStore":
        """Imported on first use: a process that receives no files does not load boto3."""
        return cast("ObjectStore", importlib.import_module("storage.s3").ObjectStore(self._settings))

    @contextlib.contextmanager
    def reserve(self, owner: str | None) -> Iterator[None]:
        """Hold a slot for one request of an owner (None: of an application). Raises Problem: 503 at the limits."""
        with self._requests.reserve(owner) as is_reserved:
            if not is_reserved:
                raise unavailable("too many uploads in progress, retry")
            yield

    def create_file(self) -> SpooledFile:
        """Return an empty unnamed file, which the kernel removes if the process is killed."""
        return SpooledFile(open_temporary_file(), self.max_bytes, self._disk_executor)

    async def store(self, spooled: SpooledFile, owner: str, upload_id: UUID) -> tuple[Upload, datetime]:
        """Sanitize, store, record and close a file. Raises Problem: 422 rejected, 429, 503; no row is written then."""
        await spooled.flush()
        await self._database.transaction(lambda conn: self._require_room(conn, owner, spooled.bytes))
        stored = await self.run_storage(
            lambda: uploads.sanitize_and_store(
                self.storage, spooled.file, upload_id=upload_id, owner=owner, limits=self._limits
            ),
            spooled.file.close,
        )
        created_at = await self._database.transaction(lambda conn: self._record(conn, stored))
        if created_at is None:  # its key names the owner
            await self.run_storage(lambda: self.storage.delete(self.storage.private_bucket, stored.upload.key))
            raise Problem(403, "the tokens of this owner were revoked during the upload")
        failpoint("uploads.after_record")
        return stored.upload, created_at

    def _require_room(self, conn: Connection, owner: str, count: int) -> None:
        owner_limits.require(conn, owner, self._settings.owner_limits, stored_bytes=count)

    def _record(self, conn: Connection, stored: uploads.StoredUpload) -> datetime | None:
        """
        Insert the row; return None if the owner was erased since the upload began, as its id says.

        Raises OwnerLimitReached if others were faster; the orphan sweep deletes the object then.
        """
        owner = stored.upload.owner
        owner_limits.lock(conn, owner)
        upload = OwnerToken(owner, 0, token_id=stored.upload.id)
        if upload.is_revoked(owner_token_revocations.find(conn, [upload])):
            return None
        self._require_room(conn, owner, stored.upload.bytes)
        return db.uploads.add(conn, uploads.require_recent(stored))

    async def run_storage(self, work: Callable[[], T], at_end: Callable[[], None] = lambda: None) -> T:
        """Run `work` in a storage thread and return its result; `at_end` is called in any case."""
        future = self._storage_executor.submit(work)
        future.add_done_callback(lambda _: at_end())
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return await asyncio.wrap_future(future)
        except InvalidMedia as error:
            errors = [{"field": "file", "message": str(error)}]
            raise Problem(422, f"file rejected: {error}", errors=errors) from error
        except TimeoutError as error:
            raise unavailable("too many files are being processed, retry") from error
        except MoorageError as error:
            level = log.error if isinstance(error, StorageRefused) else log.warning
            level("upload.failed", error=str(error))
            raise unavailable("the file could not be stored, retry") from error

    def close(self) -> None:
        """Cancel queued work; running work continues."""
        for executor in (self._storage_executor, self._disk_executor):
            executor.shutdown(wait=False, cancel_futures=True)


def file_too_large(max_bytes: int) -> Problem:
    return Problem(413, f"the file is larger than {max_bytes} bytes (MOORAGE_UPLOAD_MAX_BYTES)")
