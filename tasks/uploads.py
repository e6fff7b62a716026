"""Accept an input file: validate and strip it in a separate process, then store it."""

import hashlib
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final
from uuid import UUID

from db.uploads import Upload
from media import confined
from media.limits import Limits
from moorage import logs
from moorage.errors import StorageUnavailable
from moorage.failpoints import failpoint
from moorage.formats import list_accepted
from moorage.local_errors import open_temporary_file
from moorage.model import FetchedFile, Media
from moorage.settings import Settings
from storage import keys

if TYPE_CHECKING:
    from storage.s3 import ObjectStore  # not loaded at run time: the API uses this module and must not load boto3

log = logs.get_logger(__name__)

USER_URL_SECONDS: Final = 300  # validity of presigned URLs for users
CPU_SECONDS: Final = 30
CLOCK_SECONDS: Final = 45
MAX_RECORD_DELAY_SECONDS: Final = 600.0  # far below the minimum age of an orphan


@dataclass(frozen=True, slots=True)
class StoredUpload:
    upload: Upload
    stored_at: float  # monotonic clock, before the request


def upload_limits(limits: Limits, settings: Settings) -> Limits:
    max_bytes = settings.upload_max_bytes
    image, video = min(limits.image_max_bytes, max_bytes), min(limits.video_max_bytes, max_bytes)
    accept = list_accepted(settings.accept, of_uploads=True)
    return replace(limits, image_max_bytes=image, video_max_bytes=video, accept=accept)


def sanitize_and_store(
    storage: "ObjectStore", file: BinaryIO, *, upload_id: UUID, owner: str, limits: Limits
) -> StoredUpload:
    """
    Validate a file, remove its metadata and store it; the caller records it after `require_recent`.

    Args:
        file: has a file descriptor (a temporary file); it is read from its start.
        limits: from `upload_limits`.

    Raises:
        InvalidMedia: not a complete image or video, over a limit, or its metadata could not be removed.
        Transient: the sanitizer process could not be started, or failed independently of the file.
    """
    with open_temporary_file() as clean:
        media = _sanitize(file, clean, limits)
        clean.seek(0)
        sha256, size = hashlib.file_digest(clean, "sha256").hexdigest(), clean.tell()  # type: ignore[arg-type]
        key = keys.build_upload_key(owner, upload_id, media.extension)
        stored = StoredUpload(Upload(upload_id, owner, key, media, size, sha256), time.monotonic())
        failpoint("uploads.before_put")
        storage.put(
            storage.private_bucket, key, clean, size=size, sha256=sha256, content_type=media.content_type,
            disposition="attachment" if media.media == "file" else None,
        )  # fmt: skip
        failpoint("uploads.after_put")
    log.info("upload.stored", upload_id=upload_id, bytes=size, format=media.format)
    return stored


def require_recent(stored: StoredUpload) -> Upload:
    """Return the upload to record. Raises StorageUnavailable if the orphan sweep may have deleted it by now."""
    if time.monotonic() - stored.stored_at > MAX_RECORD_DELAY_SECONDS:
        raise StorageUnavailable("the file was stored too long ago to be recorded: upload it again")
    return stored.upload


def _sanitize(file: BinaryIO, clean: BinaryIO, limits: Limits) -> Media:
    file.seek(0)
    fetched = FetchedFile(file, os.fstat(file.fileno()).st_size, "")
    limits = replace(limits, decoder_cpu_seconds=CPU_SECONDS, decoder_seconds=CLOCK_SECONDS)
    return confined.validate_in_process(fetched, limits, {}, clean)[0]
