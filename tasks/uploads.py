"""Taking an input file: examined and freed of metadata in a process of its own, stored, recorded."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from db.uploads import Upload
from media import sanitize_process
from media.limits import Limits
from moorage import ids, logs
from moorage.errors import DiskFull, InvalidMedia, StorageUnavailable, Transient
from moorage.failpoints import failpoint
from moorage.model import Media
from storage import keys

if TYPE_CHECKING:
    from storage.s3 import ObjectStore  # not loaded: the API takes files too, and boto3 is much to load

log = logs.get_logger(__name__)

USER_URL_SECONDS: Final = 300  # so long an address that a person is given is good
MEMORY_BYTES: Final = (
    2 * 2**30
)  # of address space: 64 Mpx as RGBA take 256 MB, and turning or converting takes two more
CPU_SECONDS: Final = 30
SECONDS: Final = 45.0
MAX_RECORD_DELAY_SECONDS: Final = 600.0  # far below the youngest age at which the orphan sweep takes an object
_ROOT: Final = Path(__file__).resolve().parents[1]
_PASSED_ON: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")  # the decoder sees no credentials
_GROWTH: Final = 4  # of a picture that is encoded anew: an AVIF as PNG


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """An upload whose object is stored and that no row names yet."""

    upload: Upload
    stored_at: float  # by the monotonic clock, from before the request


def upload_limits(limits: Limits, max_bytes: int) -> Limits:
    """Return the limits of uploads: those of kept files, and `upload_max_bytes` for every kind."""
    return replace(
        limits,
        image_max_bytes=min(limits.image_max_bytes, max_bytes),
        video_max_bytes=min(limits.video_max_bytes, max_bytes),
    )


def sanitize_and_store(blobs: "ObjectStore", file: BinaryIO, *, owner: str, limits: Limits) -> StoredUpload:
    """
    Examine a file, free it of metadata and store it; returns what `fresh` gives to record.

    An object that is not recorded then is taken by the orphan sweep.

    Args:
        file: opened for reading by descriptor (a temporary file); it is read from its start.
        limits: as `limits_of` returns them.

    Raises:
        Invalid: it is no whole picture or video, is over a limit, or cannot be freed of what it says of its making.
        StorageUnavailable, StorageRefused, DiskFull: ours.
        Transient: the examining process could not be started, or failed for no fault of the file.
    """
    with _disk_file() as clean:
        media = _examine(file, clean, limits)
        clean.seek(0)
        sha256, size = _digest(clean), clean.tell()
        upload_id = ids.uuid7()
        key = keys.build_upload_key(owner, upload_id, media.extension)
        stored = StoredUpload(Upload(upload_id, owner, key, media, size, sha256), time.monotonic())
        failpoint("uploads.before_put")
        blobs.put(blobs.private_bucket, key, clean, size=size, sha256=sha256, content_type=media.content_type)
        failpoint("uploads.after_put")
    log.info("upload.stored", upload_id=upload_id, bytes=size, format=media.format)
    return stored


def require_recent(stored: StoredUpload) -> Upload:
    """
    Return the upload to record.

    Raises:
        StorageUnavailable: it was stored so long ago that the orphan sweep may have taken it.
    """
    if time.monotonic() - stored.stored_at > MAX_RECORD_DELAY_SECONDS:
        raise StorageUnavailable("the file was stored too long ago to be recorded: send it again")
    return stored.upload


def _examine(file: BinaryIO, clean: BinaryIO, limits: Limits) -> Media:
    done = _run(file, clean, limits)
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = {}
    if done.returncode == 0 and said:
        return Media(**said)
    if "problem" in said:
        raise InvalidMedia(said["problem"])
    if "error" in said:
        raise Transient(f"the upload could not be examined: {said['error']}")
    ended = f"died of signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
    raise InvalidMedia(f"not decodable: the decoder {ended}")


def _run(file: BinaryIO, clean: BinaryIO, limits: Limits) -> "subprocess.CompletedProcess[bytes]":
    file.seek(0)
    given = {
        "out": clean.fileno(),
        "bytes": os.fstat(file.fileno()).st_size,
        "sha256": "",
        "limits": asdict(limits),
        "memory_bytes": MEMORY_BYTES,
        "seconds": CPU_SECONDS,
        "max_file_bytes": _GROWTH * limits.max_bytes,
    }
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.run(
            [sys.executable, "-P", str(Path(sanitize_process.__file__)), json.dumps(given)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": path},
            pass_fds=(clean.fileno(),),
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidMedia(f"not decodable: the decoder took longer than {SECONDS:g} s") from error
    except OSError as error:  # no memory or no process left
        raise Transient(f"the upload could not be examined: {error}") from error


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _disk_file() -> BinaryIO:
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise DiskFull(f"the temporary folder: {error.strerror}", facts={"errno": error.errno}) from error
