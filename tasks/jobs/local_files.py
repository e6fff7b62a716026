"""Jobs for files that a person names: URLs as they are, local files by way of the private bucket."""

import hashlib
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from db import jobs, outputs, predictions
from db.connection import Connection
from moorage import ids
from moorage.model import Registration, Wake
from moorage.provider_types import OutputFile
from storage import keys
from tasks.step import Deps

PROVIDER = "direct"  # files that no provider announced


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file to keep: a URL, or a local path."""

    name: str
    url: str | None = None
    path: Path | None = None


def spool_file(deps: Deps, path: Path) -> str:
    """Put a local file into the private bucket and return its key; its bytes are checked by storage."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    upload_id = ids.uuid7()
    extension = path.suffix.lstrip(".").lower()
    key = keys.build_input_key(
        upload_id, extension if extension.isalnum() and extension.isascii() and len(extension) <= 8 else "bin"
    )
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    with path.open("rb") as file:
        deps.storage.put(deps.storage.private_bucket, key, file, size=size, sha256=sha256, content_type=content_type)
    return key


def create_keep_job(
    deps: Deps, sources: Sequence[tuple[FileSource, str | None]], owner: str, actor: str
) -> tuple[UUID, list[Wake]]:
    """
    Make a job whose files are the sources; returns its id and wakes.

    Args:
        sources: each with the key it was spooled under, or None for a URL.
    """
    return deps.database.run(lambda conn: _start(conn, deps, sources, owner, actor))


def _start(
    conn: Connection, deps: Deps, sources: Sequence[tuple[FileSource, str | None]], owner: str, actor: str
) -> tuple[UUID, list[Wake]]:
    job_id, prediction_id = ids.uuid7(), ids.uuid7()
    deadline = deps.settings.job_deadline_seconds
    asked = Registration(provider=PROVIDER, external_id=str(job_id), owner=owner, kind="mixed")
    jobs.add_registered(conn, job_id, asked, deadline_seconds=deadline, actor=actor)
    predictions.add(
        conn,
        prediction_id,
        job_id,
        provider=PROVIDER,
        external_id=str(job_id),
        model=None,
        deadline_seconds=deadline,
        first_poll_seconds=deadline,
        actor=actor,
        state="succeeded",
    )
    jobs.change_state(conn, jobs.lock(conn, job_id), "keeping", actor=actor, chosen_id=prediction_id)
    wakes = []
    for number, (source, key) in enumerate(sources):
        output_id = ids.uuid7()
        found = OutputFile(path=f"file[{number}]", url=source.url)
        outputs.add(
            conn,
            output_id,
            job_id=job_id,
            prediction_id=prediction_id,
            file=found,
            expires_at=None,
            actor=actor,
            object_key=key,
        )
        wakes.append(Wake("keep", output_id))
    return job_id, wakes
