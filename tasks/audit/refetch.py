"""Repair a missing or damaged object: store it again under its key if the fetched bytes are identical."""

from collections import Counter
from dataclasses import replace
from uuid import UUID

from db import objects, outputs
from db.connection import Row
from media import validate
from media.validate import ValidatedFile
from moorage.errors import MoorageError, OutputGone
from moorage.formats import FORMATS
from moorage.model import FetchedFile, Output
from storage.errors import ObjectMissing
from tasks.audit.objects import compute_digest
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
    rows = deps.database.run(lambda conn: objects.get_objects(conn, "objects", [output_id]))
    named = {row["key"]: row for row in rows if row["is_required"]}
    if output is None or output.key not in named:
        return True, "it is no longer kept"
    original, thumb = named[output.key], named.get(output.thumb_key)
    try:
        with keep.spool_object(deps, deps.storage.public_bucket, original["key"], _ignore_progress) as fetched:
            return _restore_thumbnail(deps, thumb, _validate(deps, fetched, original))
    except (ObjectMissing, DigestMismatch):
        return _restore_from_source(deps, output, original, thumb)


def _validate(deps: Deps, fetched: FetchedFile, original: Row) -> ValidatedFile:
    if fetched.sha256 != original["sha256"]:
        raise DigestMismatch(f"it has the digest {fetched.sha256} now, not {original['sha256']}")
    # MOORAGE_ACCEPT may have changed since the file was kept.
    return validate.validate_file(fetched, replace(deps.limits, accept=FORMATS))


def _restore_from_source(deps: Deps, output: Output, original: Row, thumb: Row | None) -> tuple[bool, str]:
    if output.source is None and output.source_data is None:
        return False, "it cannot be fetched again: its source was deleted when it was kept"
    try:
        try:
            return _fetch(deps, output, original, thumb)
        except OutputGone:
            fresh = keep.poll_fresh_url(deps, output)
            if fresh is None:
                raise
            return _fetch(deps, replace(output, source=fresh[1]), original, thumb)
    except MoorageError as error:
        if error.is_internal:
            raise
        return False, f"it cannot be fetched again: {error}"


def _fetch(deps: Deps, output: Output, original: Row, thumb: Row | None) -> tuple[bool, str]:
    with keep.open_source(deps, output, _ignore_progress) as fetched:
        examined = _validate(deps, fetched, original)
        keep.put_original(deps, original["key"], fetched, examined.media)
    is_restored, message = _restore_thumbnail(deps, thumb, examined)
    return is_restored, f"fetched again, byte for byte; {message}"


def _restore_thumbnail(deps: Deps, row: Row | None, examined: ValidatedFile) -> tuple[bool, str]:
    if row is None or compute_digest(deps, deps.storage.public_bucket, row["key"], Counter()) == row["sha256"]:
        return True, "its objects match its row"
    if examined.thumb is None or examined.thumb.sha256 != row["sha256"]:
        return False, "its original is intact, but a new thumbnail of it differs from the recorded one"
    keep.put_thumbnail(deps, row["key"], examined.thumb)
    return True, "its thumbnail was stored again"
