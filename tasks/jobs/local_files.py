"""Local files of `moorage keep`, which are spooled into the private bucket."""

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from moorage import ids
from storage import keys
from tasks.step import Deps


@dataclass(frozen=True, slots=True)
class FileSource:
    name: str
    url: str | None = None
    path: Path | None = None


def spool_file(deps: Deps, path: Path) -> str:
    """Upload a local file to the private bucket, with its digest; returns its key."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    upload_id = ids.uuid7()
    extension = path.suffix.lstrip(".").lower()
    is_valid = extension.isalnum() and extension.isascii() and len(extension) <= 8
    key = keys.build_input_key(upload_id, extension if is_valid else "bin")
    content_type = guess_content_type(path)
    with path.open("rb") as file:
        deps.storage.put(deps.storage.private_bucket, key, file, size=size, sha256=sha256, content_type=content_type)
    return key


def guess_content_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
