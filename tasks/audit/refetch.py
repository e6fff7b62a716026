"""Repair a missing or damaged object: store it again under its key if the fetched bytes are identical."""

from collections import Counter
from dataclasses import replace
from uuid import UUID

from db import objects, outputs
from db.connection import Row
from media import validate
from media.limits import Limits
from media.validate import ValidatedFile
from moorage.errors import MoorageError, OutputGone
from moorage.formats import FORMATS
from moorage.model import FetchedFile, Output
from storage.errors import ObjectMissing
from tasks.audit.digests import compute_digest
from tasks.outputs import keep
from tasks.step import Deps


def _ignore_progress() -> None:
    """A repair holds no lease that a download could lose."""


class DigestMismatch(MoorageError):
    """The source has other bytes now."""


def refetch_output(deps: Deps, output_id: UUID) -> tuple[bool, str]:
    """
    Restore the objects of a kept output; returns True if they match their row now, and what was done or failed.

    The original is read from storage if it is intact (then only the thumbnail is restored), otherwise from its recorded
    URL, and if that has expired from a new URL of the provider.
    """
    output = deps.database.run(lambda conn: outputs.get(conn, output_id))
    rows = deps.database.run(lambda conn: objects.get_output_objects(conn, [output_id]))
    if output is None or not rows or rows[0]["state"] != "kept":
        return True, "it is no longer kept"
    row = rows[0]
    try:
        with keep.spool_object(deps, deps.storage.public_bucket, row["key"], _ignore_progress) as fetched:
            examined = validate.validate_file(_require_identical(fetched, row), _accept_all(deps))
            return _restore_thumbnail(deps, row, examined)
    except (ObjectMissing, DigestMismatch):
        return _restore_from_source(deps, output, row)


def _accept_all(deps: Deps) -> Limits:
    """Return the limits without MOORAGE_ACCEPT, which may have changed since the file was kept."""
    return replace(deps.limits, accept=FORMATS)


def _require_identical(fetched: FetchedFile, row: Row) -> FetchedFile:
    if fetched.sha256 != row["sha256"]:
        raise DigestMismatch(f"it has the digest {fetched.sha256} now, not {row['sha256']}")
    return fetched


def _restore_from_source(deps: Deps, output: Output, row: Row) -> tuple[bool, str]:
    if output.source is None and output.source_data is None:
        return False, "it cannot be fetched again: its source was deleted when it was kept"
    try:
        try:
            return _fetch(deps, output, row)
        except OutputGone:
            refreshed = _refresh_url(deps, output)
            if refreshed is None:
                raise
            return _fetch(deps, refreshed, row)
    except MoorageError as error:
        if error.is_internal:
            raise
        return False, f"it cannot be fetched again: {error}"


def _fetch(deps: Deps, output: Output, row: Row) -> tuple[bool, str]:
    with keep.open_source(deps, output, _ignore_progress) as fetched:
        examined = validate.validate_file(_require_identical(fetched, row), _accept_all(deps))
        keep.put_original(deps, row["key"], fetched, examined.media)
    is_restored, message = _restore_thumbnail(deps, row, examined)
    return is_restored, f"fetched again, byte for byte; {message}"


def _refresh_url(deps: Deps, output: Output) -> Output | None:
    """Poll the provider for a new URL of the same path; None if it has none."""
    provider = deps.providers.get(output.provider)
    if provider is None or not provider.can_poll:
        return None
    report = provider.poll(output.external_id, output.model)
    url = next((file.url for file in report.outputs if file.path == output.path and not file.problem), None)
    return replace(output, source=url) if url and url != output.source else None


def _restore_thumbnail(deps: Deps, row: Row, examined: ValidatedFile) -> tuple[bool, str]:
    key, thumb = row["thumb_key"], examined.thumb
    if key is None or compute_digest(deps, deps.storage.public_bucket, key, Counter()) == row["thumb_sha256"]:
        return True, "its objects match its row"
    if thumb is None or thumb.sha256 != row["thumb_sha256"]:
        return False, "its original is intact, but a new thumbnail of it differs from the recorded one"
    keep.put_thumbnail(deps, key, thumb)
    return True, "its thumbnail was stored again"
