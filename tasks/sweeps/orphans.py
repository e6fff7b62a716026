"""
The orphan sweep: quarantine and delete objects under moorage's prefixes that no row names (rule 5 of docs/design.md).

An orphan is copied into the quarantine and deleted; the same sweep deletes quarantined objects later. After a crash
between two requests an object is at worst in both places, and the next run continues.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final, Literal

from db import objects, orphans
from db.connection import current_time
from db.orphans import ScanCursor
from moorage import logs
from moorage.errors import StorageRefused, StorageUnavailable
from moorage.failpoints import failpoint
from storage import keys
from storage.errors import ObjectMissing
from storage.s3 import ListedObject
from tasks.step import Deps, run_unless_locked

log = logs.get_logger(__name__)

SWEEP: Final = "orphans"
SECONDS: Final = 240.0  # per run by beat; the limit of a sweep is 600 s
MAX_LISTED: Final = 1000  # objects in a report
_PAGE: Final = 500
_MAX_FAILURES: Final = 3  # tolerates single bad objects, but not an unavailable storage

Reason = Literal["orphan", "leased", "unreadable", "quarantined", "failed"]
REASON_TEXTS: Final[dict[Reason, str]] = {
    "orphan": "no row names it or can name it later",
    "leased": "left: the lease that stored it is live, or its row is locked",
    "unreadable": "left: its key was not created by moorage",
    "quarantined": "its quarantine period has ended",
    "failed": "left: storage failed, see the log",
}


# The bucket and the prefix of each listing.
PREFIXES: Final[tuple[tuple[Literal["public", "private"], str], ...]] = (
    ("public", keys.RENDER_PREFIX),
    ("public", keys.INPUT_PREFIX),
    ("private", keys.RENDER_PREFIX),
    ("private", keys.INPUT_PREFIX),
    ("private", keys.QUARANTINE_PREFIX),
    ("private", ""),  # uploads, whose keys begin with their owner
)


@dataclass(frozen=True, slots=True)
class OrphanCandidate:
    bucket: str
    key: str
    bytes: int
    stored_at: datetime
    reason: Reason


@dataclass(slots=True)
class OrphanReport:
    """The result of a run."""

    looked_at: int = 0  # number of listed objects
    objects: Counter[str] = field(default_factory=Counter)  # by reason
    bytes: Counter[str] = field(default_factory=Counter)  # by reason
    listed: list[OrphanCandidate] = field(default_factory=list)  # the first 1,000
    stopped_at: ScanCursor | None = None  # where the cap or the time limit ended the run; None: it is complete

    def add(self, candidate: OrphanCandidate) -> None:
        self.objects[candidate.reason] += 1
        self.bytes[candidate.reason] += candidate.bytes
        if len(self.listed) < MAX_LISTED:
            self.listed.append(candidate)


def sweep_orphans(deps: Deps) -> dict[str, Any]:
    """Quarantine or delete orphans from the saved position on, for at most four minutes; returns counts by reason."""
    start = deps.database.run(partial(orphans.load_cursor, sweep=SWEEP))
    report = scan_orphans(deps, delete=True, start=start, seconds=SECONDS, save_cursor=True)
    return {"looked_at": report.looked_at, **report.objects, "at_end": report.stopped_at is None}


def scan_orphans(
    deps: Deps, *, delete: bool, start: ScanCursor | None = None, seconds: float = math.inf, save_cursor: bool = False
) -> OrphanReport:
    """
    Scan both buckets page by page for orphans; with `delete`, quarantine or delete them.

    Args:
        start: continue after this key.
        seconds: stop at the end of a page after this time.
        save_cursor: save the position after each page, so that the next run continues after a crash.
    """
    scan = _OrphanScan(deps, delete=delete, until=time.monotonic() + seconds)
    for cursor in scan.run(start):
        if save_cursor:
            deps.database.run(partial(orphans.save_cursor, sweep=SWEEP, position=cursor))
    if save_cursor:
        deps.database.run(partial(orphans.save_cursor, sweep=SWEEP, position=scan.report.stopped_at))
    return scan.report


class _OrphanScan:
    def __init__(self, deps: Deps, *, delete: bool, until: float) -> None:
        self._deps, self._storage, self._delete, self._until = deps, deps.storage, delete, until
        self._remaining = dict.fromkeys(("orphan", "quarantined"), deps.settings.constants.orphans_per_run)
        self.report, self._last_key = OrphanReport(), ""

    def run(self, start: ScanCursor | None) -> Iterator[ScanCursor]:
        names = [" ".join(prefix) for prefix in PREFIXES]
        first = names.index(start.listing) if start and start.listing in names else 0
        for name, (bucket_kind, prefix) in list(zip(names, PREFIXES, strict=True))[first:]:
            storage = self._storage
            bucket = storage.public_bucket if bucket_kind == "public" else storage.private_bucket
            after = start.after_key if start and start.listing == name else ""
            listing = storage.list_objects(bucket, prefix, after)
            while page := list(islice(listing, _PAGE)):
                try:
                    cursor = ScanCursor(name, self._process_page(bucket, prefix, page))
                except (StorageUnavailable, StorageRefused):
                    yield ScanCursor(name, self._last_key)  # else each run would end here
                    raise
                if 0 in self._remaining.values() or time.monotonic() > self._until:
                    self.report.stopped_at = cursor
                    return
                yield cursor

    def _process_page(self, bucket: str, prefix: str, page: list[ListedObject]) -> str:
        """Process the objects of a page until the limit of a run; return the key of the last one."""
        settings, is_quarantine = self._deps.settings, prefix == keys.QUARANTINE_PREFIX
        age_seconds = settings.quarantine_seconds if is_quarantine else settings.constants.orphan_age_seconds
        limit = self._deps.database.run(current_time) - timedelta(seconds=age_seconds)
        named = self._deps.database.run(partial(objects.find_referenced_keys, keys=[listed.key for listed in page]))
        for listed in page:
            if not prefix and not keys.is_upload_key(listed.key):
                continue  # below another prefix, or not created by moorage
            self.report.looked_at += 1
            is_old = listed.key not in named and listed.modified_at < limit
            reason = self._classify(listed.key, is_quarantine=is_quarantine) if is_old else None
            if reason is not None:
                self._process(OrphanCandidate(bucket, listed.key, listed.size_bytes, listed.modified_at, reason))
            if 0 in self._remaining.values():
                return listed.key
        return page[-1].key

    def _classify(self, name: str, *, is_quarantine: bool) -> Reason | None:
        """Classify an old object that no row named when the page was read; None if a row names it now."""
        original = name.removeprefix(keys.QUARANTINE_PREFIX) if is_quarantine else name
        if not keys.is_known_key(original):
            return "unreadable"
        unnamed: Reason = "quarantined" if is_quarantine else "orphan"
        key = keys.parse_render_key(original)
        if key is None:
            return unnamed
        # Locked only before a deletion. A token is used once, so that an unreferenced key stays unreferenced.
        find = partial(orphans.find_reference, lock=self._delete)
        reference = run_unless_locked(
            self._deps, lambda conn: find(conn, name, key.render_id, key.idx, key.token_start), key=name
        )
        if reference == "named":
            return None
        return unnamed if reference == "unreferenced" else "leased"

    def _process(self, candidate: OrphanCandidate) -> None:
        if self._delete and candidate.reason in self._remaining:
            self._remaining[candidate.reason] -= 1
            self._last_key = candidate.key
            try:
                self._quarantine_or_delete(candidate)
            except (StorageUnavailable, StorageRefused) as error:
                log.warning("orphan.failed", bucket=candidate.bucket, key=candidate.key, error=str(error))
                if self.report.objects["failed"] + 1 >= _MAX_FAILURES:
                    raise
                candidate = replace(candidate, reason="failed")
        self.report.add(candidate)

    def _quarantine_or_delete(self, candidate: OrphanCandidate) -> None:
        storage, bucket, key = self._storage, candidate.bucket, candidate.key
        if candidate.reason == "orphan":
            failpoint("orphans.before_quarantine")
            try:
                storage.copy(bucket, key, storage.private_bucket, keys.build_quarantine_key(key))
            except ObjectMissing:
                return  # another run was faster
            failpoint("orphans.after_quarantine")
        storage.delete(bucket, key)
        failpoint("orphans.after_delete")
        event = "orphan.quarantined" if candidate.reason == "orphan" else "orphan.deleted"
        log.info(event, bucket=bucket, key=key, bytes=candidate.bytes)
