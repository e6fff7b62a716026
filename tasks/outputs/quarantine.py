"""
Quarantine: the bytes of a file that cannot be kept, for a replay that does not ask the provider.

The object is stored, then named by its output under the lease, and only then is the failure recorded. If the worker
dies before the object is named, the row is as before, and the orphan sweep deletes the object when its quarantine has
ended; if it dies later, the next attempt reads the object.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType

from db import quarantine
from egress import download
from media import sniff
from moorage import errors, logs
from moorage.failpoints import failpoint
from moorage.local_errors import find_local_failure
from moorage.model import FetchedFile, Lease, Output
from moorage.text import to_storable
from storage import keys
from storage.errors import ObjectMissing
from tasks.step import Deps, LeaseGuard, commit_step

log = logs.get_logger(__name__)

# The file is not refused then, and is downloaded again.
_NOT_THE_FILE = (
    errors.LeaseLost,
    errors.StepInterrupted,
    errors.DatabaseLocked,
    errors.DatabaseUnavailable,
    errors.StorageUnavailable,
)


class QuarantineGuard:
    """
    Stores the file in quarantine if the `with` block raises; the exception goes on once the bytes are stored.

    Raises StorageUnavailable or StorageRefused instead if they cannot be stored now: the file is tried again. A store
    that never accepts the object leaves nothing to wait for, so that the exception goes on, with the reason.
    """

    def __init__(self, deps: Deps, lease: Lease, output: Output, fetched: FetchedFile, guard: LeaseGuard) -> None:
        self._deps, self._lease, self._output, self._fetched, self._guard = deps, lease, output, fetched, guard

    def __enter__(self) -> None:
        if self._lease.crashes > 1:  # a worker died at this row, and may die again: no exception would be raised
            self._store(extends=False)

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception) or isinstance(error, _NOT_THE_FILE):
            return
        # A failure of our own is repeated without a limit: it must not extend the time until which it is.
        is_own = (isinstance(error, errors.MoorageError) and error.is_internal) or find_local_failure(error) is not None
        try:
            self._store(extends=not is_own)
        except (errors.StorageUnavailable, errors.StorageRefused) as failure:
            failure.facts["refused"] = to_storable(str(error), 500)
            raise
        except errors.ObjectRefused as failure:
            log.error("quarantine.refused", output_id=self._output.id, error=str(failure))
            if isinstance(error, errors.MoorageError):
                error.facts["not_stored"] = str(failure)

    def _store(self, *, extends: bool) -> None:
        output, fetched, lease = self._output, self._fetched, self._lease
        if not fetched.size_bytes:
            return
        key, storage = output.quarantine_key, self._deps.storage
        self._guard.ensure_held()
        if key is None or (output.quarantine_sha256 != fetched.sha256 and self._is_replaceable(key)):
            key = keys.build_refused_key(output.job_id, output.idx, fetched.sha256, lease.token)
            failpoint("quarantine.before_put")
            storage.put(
                storage.private_bucket, key, fetched.file, size=fetched.size_bytes, sha256=fetched.sha256,
                content_type="application/octet-stream", disposition="attachment",
            )  # fmt: skip
            failpoint("quarantine.after_put")
            facts = (key, fetched.size_bytes, fetched.sha256, to_storable(fetched.declared_type or "", 200) or None)
            commit_step(self._deps, lease, self._guard, lambda conn: quarantine.record(conn, lease, *facts))
            self._output = replace(output, quarantine_key=key, quarantine_sha256=fetched.sha256)
            log.warning("output.quarantined", output_id=output.id, key=key, bytes=fetched.size_bytes)
        elif extends:
            commit_step(self._deps, lease, self._guard, partial(quarantine.extend, lease=lease))
        failpoint("quarantine.after_record")

    def _is_replaceable(self, key: str) -> bool:
        """Return True if another download is a file, and the one in quarantine is not: probably an error page."""
        self._fetched.file.seek(0)
        if sniff.detect_format(self._fetched.file.read(sniff.HEAD_BYTES)) is None:
            return False
        if self._output.quarantine_sha256 is None:  # the object was altered
            return True
        storage, head = self._deps.storage, (0, sniff.HEAD_BYTES - 1)
        try:
            with storage.open_object(storage.private_bucket, key, byte_range=head) as opened:
                return sniff.detect_format(opened.read()) is None
        except ObjectMissing:
            return True


@contextlib.contextmanager
def open_file(deps: Deps, output: Output, on_progress: Callable[[], None]) -> Iterator[FetchedFile]:
    """Read the file of an output from quarantine. Raises ObjectMissing; ObjectAltered if it has other bytes now."""
    key = output.quarantine_key or ""
    with (
        deps.storage.open_object(deps.storage.private_bucket, key) as opened,
        download.spool_chunks(opened.iterate_chunks(), deps.limits, on_progress) as fetched,
    ):
        if fetched.sha256 != output.quarantine_sha256:
            log.error("quarantine.altered", output_id=output.id, key=key)
            stored = f"in quarantine with the SHA-256 {output.quarantine_sha256}, read with {fetched.sha256}"
            raise errors.ObjectAltered(f"object {key}: {stored}: restore it, or discard the dead letter")
        extension = download.find_extension(output.source or "")
        yield replace(fetched, declared_type=output.quarantine_type, declared_extension=extension)


def forget_missing(deps: Deps, lease: Lease, output: Output) -> Output:
    """Return an output without quarantine if its object is missing, and record that."""
    key, bucket = output.quarantine_key, deps.storage.private_bucket
    if key is None:
        return output
    # Not by a HEAD, whose response is the same if the bucket is missing, or that of a proxy.
    with contextlib.suppress(ObjectMissing), deps.storage.open_object(bucket, key, byte_range=(0, 0)):
        return output
    log.error("quarantine.forgotten", output_id=output.id, key=key)
    deps.database.run(partial(quarantine.forget, lease=lease))
    return replace(output, quarantine_key=None, quarantine_sha256=None)


def explain_too_large(output: Output, error: errors.FileTooLarge) -> errors.FileTooLarge:
    """Return the error with what remains of a file above the byte limit: its URL."""
    until = f"until {output.expires_at:%Y-%m-%d %H:%M:%S} UTC" if output.expires_at else "without a known end"
    return errors.FileTooLarge(f"{error}; nothing was stored, its URL lives {until}", facts=error.facts)
