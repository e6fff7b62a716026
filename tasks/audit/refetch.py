"""Fetching an object again that is missing or wrong: stored under its old key only when the bytes are identical."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO
from uuid import UUID

from db import objects, outputs
from db.connection import Row
from egress import download
from media import validate
from media.validate import ValidatedFile
from moorage.errors import MoorageError, OutputGone
from moorage.model import FetchedFile, Output
from storage.errors import ObjectMissing
from tasks.audit.digests import compute_digest
from tasks.outputs import keep
from tasks.step import Deps


def _ignore_progress() -> None:
    """No lease is held here, so that a download has nothing to check."""


class DigestMismatch(MoorageError):
    """What the source gives now is not what was kept."""


def refetch_output(deps: Deps, output_id: UUID) -> tuple[bool, str]:
    """
    Mend the objects of a kept output; returns whether they are what was recorded, and how or why not.

    The original comes from our own storage where it is still right (then only the thumbnail is made again), else from
    the provider: from the URL that was recorded, and where that is dead from one that a poll gives.

    Raises:
        StorageUnavailable, StorageRefused, DatabaseUnavailable: they are away or say no.
    """
    found = deps.database.run(lambda conn: outputs.get(conn, output_id))
    rows = deps.database.run(lambda conn: objects.get_output_objects(conn, [output_id]))
    if found is None or not rows or rows[0]["state"] != "kept":
        return True, "it is no longer kept"
    row = rows[0]
    try:
        with _stored(deps, row) as fetched:
            return _mend_thumbnail(deps, row, validate.validate_file(fetched, deps.limits))
    except (ObjectMissing, DigestMismatch):
        return _from_source(deps, found, row)


@contextlib.contextmanager
def _stored(deps: Deps, row: Row) -> Iterator[FetchedFile]:
    blobs = deps.storage
    with (
        blobs.open_object(blobs.public_bucket, row["key"]) as opened,
        download.spool_chunks(opened.iterate_chunks(), deps.limits, _ignore_progress) as fetched,
    ):
        yield _identical(fetched, row)


def _identical(fetched: FetchedFile, row: Row) -> FetchedFile:
    if fetched.sha256 != row["sha256"]:
        raise DigestMismatch(f"it has the digest {fetched.sha256} now, not {row['sha256']}")
    return fetched


def _from_source(deps: Deps, found: Output, row: Row) -> tuple[bool, str]:
    if found.source is None and found.source_data is None:
        return False, "its source went when it was kept: it cannot be fetched again"
    try:
        try:
            return _fetch(deps, found, row)
        except OutputGone:
            fresh = _fresh(deps, found)
            if fresh is None:
                raise
            return _fetch(deps, fresh, row)
    except MoorageError as error:
        if error.is_internal:
            raise
        return False, f"it cannot be fetched again: {error}"


def _fetch(deps: Deps, found: Output, row: Row) -> tuple[bool, str]:
    with keep.open_source(deps, found, _ignore_progress) as fetched:
        examined = validate.validate_file(_identical(fetched, row), deps.limits)
        content_type = examined.media.content_type
        _put(deps, row["key"], fetched.file, fetched.size_bytes, row["sha256"], content_type, keep.CACHE_IMMUTABLE)
    done, what = _mend_thumbnail(deps, row, examined)
    return done, f"fetched again, byte for byte; {what}"


def _fresh(deps: Deps, found: Output) -> Output | None:
    """Ask the provider for a fresh URL of the same path; None when it has none."""
    provider = deps.providers.get(found.provider)
    if provider is None or not provider.can_poll:
        return None
    report = provider.poll(found.external_id, found.model)
    url = next((file.url for file in report.outputs if file.path == found.path and not file.problem), None)
    return replace(found, source=url) if url and url != found.source else None


def _mend_thumbnail(deps: Deps, row: Row, examined: ValidatedFile) -> tuple[bool, str]:
    """Store the thumbnail again where it is not what was recorded; the original is right by now."""
    key, thumb = row["thumb_key"], examined.thumb
    if key is None or compute_digest(deps, deps.storage.public_bucket, key, Counter()) == row["thumb_sha256"]:
        return True, "its objects are what was recorded"
    if thumb is None or thumb.sha256 != row["thumb_sha256"]:
        return False, "its original is right, but the thumbnail made from it now is not the one that was recorded"
    _put(deps, key, io.BytesIO(thumb.data), len(thumb.data), thumb.sha256, "image/webp", keep.CACHE_ONE_DAY)
    return True, "its thumbnail was made again"


def _put(deps: Deps, key: str, body: BinaryIO, size: int, sha256: str, content_type: str, cache_control: str) -> None:
    blobs = deps.storage
    blobs.put(
        blobs.public_bucket, key, body, size=size, sha256=sha256, content_type=content_type, cache_control=cache_control
    )
