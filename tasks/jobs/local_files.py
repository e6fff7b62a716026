"""Jobs of `moorage keep`: URLs, and local files that are spooled into the private bucket."""

import hashlib
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from db import jobs, outputs, registrations
from db.connection import Connection
from db.outputs import NewOutput
from moorage import ids
from moorage.model import Registration, Wake
from moorage.provider_types import OutputFile
from moorage.settings import Settings
from storage import keys
from tasks.step import Deps

PROVIDER = "direct"


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


def insert_keep_job(
    conn: Connection, settings: Settings, sources: Sequence[tuple[FileSource, str | None]], owner: str, actor: str
) -> tuple[UUID, list[Wake]]:
    """Create a job with the sources (each with the key of its spooled file) as outputs; returns its id and wakes."""
    job_id, prediction_id, deadline = ids.uuid7(), ids.uuid7(), settings.job_deadline_seconds
    registration = Registration(provider=PROVIDER, external_id=str(job_id), owner=owner, kind="mixed")
    row = {"job_id": job_id, "prediction_id": prediction_id, "state": "succeeded", "notify": False, "actor": actor}
    registrations.queue_add(conn, registration, deadline_seconds=deadline, first_poll_seconds=deadline, **row)
    jobs.change_state(conn, jobs.lock(conn, job_id), "keeping", actor=actor, chosen_id=prediction_id)
    files = [OutputFile(f"file[{n}]", url=source.url, object_key=key) for n, (source, key) in enumerate(sources)]
    new = [NewOutput(ids.uuid7(), job_id, prediction_id, file) for file in files]
    conn.execute(outputs.ADD, outputs.build_add(new, actor))
    return job_id, [Wake("keep", output.id) for output in new]
