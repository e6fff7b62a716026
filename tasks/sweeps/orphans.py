"""
The orphan sweep: objects under our prefixes that no row names and none ever will (rule 5 of docs/design.md).

An orphan is copied into the quarantine and deleted; the quarantine is emptied later by the same sweep. A crash between
any two requests leaves an object in both places at worst, and the next run goes on from there.
"""

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
from storage.keys import RenderKey, UploadKey
from storage.s3 import ListedObject
from tasks.step import Deps

log = logs.get_logger(__name__)

SWEEP: Final = "orphans"
SECONDS: Final = 240.0  # a run by beat; Celery's hard limit is 600 s
MAX_LISTED: Final = 1000  # objects that a report lists
_PAGE: Final = 500
_MOST_FAILURES: Final = 3  # one bad object does not end a run, a store that is away does

Reason = Literal["orphan", "leased", "unreadable", "quarantined", "failed"]
REASON_TEXTS: Final[dict[Reason, str]] = {
    "orphan": "no row names it, and none ever will",
    "leased": "stays: the lease that stored it lives",
    "unreadable": "stays: its name is not one that moorage gives",
    "quarantined": "its time in quarantine is over",
    "failed": "stays: storage did not carry it out, see the log",
}


@dataclass(frozen=True, slots=True)
class ListedPrefix:
    """One listing: a bucket and an exact prefix."""

    bucket: Literal["public", "private"]
    prefix: str

    @property
    def name(self) -> str:
        """Return what a cursor calls it."""
        return f"{self.bucket} {self.prefix}"


PREFIXES: Final = (
    ListedPrefix("public", keys.RENDER_PREFIX),
    ListedPrefix("public", keys.INPUT_PREFIX),
    ListedPrefix("private", keys.RENDER_PREFIX),
    ListedPrefix("private", keys.INPUT_PREFIX),
    ListedPrefix("private", keys.QUARANTINE_PREFIX),
    ListedPrefix("private", ""),  # uploads, which stand under their owners
)


@dataclass(frozen=True, slots=True)
class OrphanCandidate:
    """An object that is taken, or that is old enough and stays for a reason."""

    bucket: str
    key: str
    bytes: int
    stored_at: datetime
    reason: Reason


@dataclass(slots=True)
class OrphanReport:
    """
    What a run saw and did, or would do.

    Attributes:
        looked_at: objects listed.
        objects, bytes: by reason, of those that are not named by a row and not young.
        listed: the first 1,000 of them.
        stopped_at: where the cap or the time ended the run; None: it came to the end.
    """

    looked_at: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    listed: list[OrphanCandidate] = field(default_factory=list)
    stopped_at: ScanCursor | None = None

    def add(self, seen: OrphanCandidate) -> None:
        """Count an object, and list it while there is room."""
        self.objects[seen.reason] += 1
        self.bytes[seen.reason] += seen.bytes
        if len(self.listed) < MAX_LISTED:
            self.listed.append(seen)


def sweep_orphans(deps: Deps) -> dict[str, Any]:
    """Take orphans from where the last run stopped, for four minutes at most; returns counts by reason."""
    start = deps.database.run(partial(orphans.load_cursor, sweep=SWEEP))
    report = scan_orphans(deps, delete=True, start=start, seconds=SECONDS, save_cursor=True)
    return {"looked_at": report.looked_at, **report.objects, "at_end": report.stopped_at is None}


def scan_orphans(
    deps: Deps,
    *,
    delete: bool,
    start: ScanCursor | None = None,
    seconds: float | None = None,
    save_cursor: bool = False,
) -> OrphanReport:
    """
    Go through our prefixes of both buckets, a page in memory, and take what belongs to nobody.

    Args:
        delete: off: nothing is changed, and the report says what would be taken.
        start: begin behind this key instead of at the start.
        seconds: stop at the end of the page after so long.
        remember: save the place after each page, so that a run that is killed goes on there.

    Raises:
        DatabaseUnavailable, StorageUnavailable, StorageRefused: PostgreSQL did not answer, or storage did not list, or
            failed for three objects; what was done stays done.
    """
    walk = _Walk(deps, delete=delete, until=None if seconds is None else time.monotonic() + seconds)
    for cursor in walk.go(start):
        if save_cursor:
            deps.database.run(partial(orphans.save_cursor, sweep=SWEEP, position=cursor))
    if save_cursor:
        deps.database.run(partial(orphans.save_cursor, sweep=SWEEP, position=walk.report.stopped_at))
    return walk.report


class _Walk:
    def __init__(self, deps: Deps, *, delete: bool, until: float | None) -> None:
        self._deps, self._delete, self._until = deps, delete, until
        self._room = dict.fromkeys(("orphan", "quarantined"), deps.settings.constants.orphans_per_run)
        self.report = OrphanReport()

    def go(self, start: ScanCursor | None) -> Iterator[ScanCursor]:
        """Go through the places; gives where it is after each page."""
        names = [place.name for place in PREFIXES]
        first = names.index(start.listing) if start and start.listing in names else 0
        for number, place in enumerate(PREFIXES[first:]):
            after = start.after_key if start and number == 0 and start.listing == place.name else ""
            for cursor in self._through(place, after):
                if self._is_over():
                    self.report.stopped_at = cursor
                    return
                yield cursor

    def _through(self, place: ListedPrefix, after: str) -> Iterator[ScanCursor]:
        listing = self._deps.storage.list_objects(self._bucket(place), place.prefix, after)
        while page := list(islice(listing, _PAGE)):
            yield ScanCursor(place.name, self._page(place, page))

    def _page(self, place: ListedPrefix, page: list[ListedObject]) -> str:
        """Handle a page up to the cap; returns the last key that was handled."""
        for listed, seen in self._judged(place, page):
            self.report.looked_at += 1
            if seen is not None:
                self._handle(seen)
            if self._is_full():
                return listed.key
        return page[-1].key

    def _judged(
        self, place: ListedPrefix, page: list[ListedObject]
    ) -> Iterator[tuple[ListedObject, OrphanCandidate | None]]:
        settings = self._deps.settings
        moment = self._deps.database.run(current_time)
        if place.prefix == keys.QUARANTINE_PREFIX:
            limit, named = moment - timedelta(seconds=settings.quarantine_seconds), set[str]()
        else:
            limit = moment - timedelta(seconds=settings.constants.orphan_age_seconds)
            named = self._deps.database.run(partial(objects.find_referenced_keys, keys=[listed.key for listed in page]))
        for listed in page:
            if not place.prefix and not isinstance(keys.parse_key(listed.key), UploadKey):
                continue  # of another place, or not ours: the bucket may hold what somebody else put there
            is_old = listed.key not in named and listed.modified_at < limit
            yield listed, self._judge(place, listed) if is_old else None

    def _judge(self, place: ListedPrefix, listed: ListedObject) -> OrphanCandidate | None:
        """Say what an old object is that no row named when the page was read; None when one does by now."""
        original = (
            listed.key.removeprefix(keys.QUARANTINE_PREFIX) if place.prefix == keys.QUARANTINE_PREFIX else listed.key
        )
        told = keys.parse_key(original)
        seen = partial(OrphanCandidate, self._bucket(place), listed.key, listed.size_bytes, listed.modified_at)
        if told is None:
            return seen("unreadable")
        if place.prefix == keys.QUARANTINE_PREFIX:
            return seen("quarantined")
        if not isinstance(told, RenderKey):
            return seen("orphan")
        # Under the lock only when it is about to be taken: a token is used once, so what is free now is free for ever.
        refusal = self._deps.database.run(
            lambda conn: orphans.find_reference(
                conn, listed.key, told.render_id, told.idx, told.token_start, lock=self._delete
            )
        )
        if refusal == "named":
            return None
        return seen("leased" if refusal == "leased" else "orphan")

    def _handle(self, seen: OrphanCandidate) -> None:
        if self._delete and seen.reason in self._room:
            self._room[seen.reason] -= 1
            seen = self._tried(seen)
        self.report.add(seen)

    def _tried(self, seen: OrphanCandidate) -> OrphanCandidate:
        try:
            self._take(seen)
        except (StorageUnavailable, StorageRefused) as error:
            log.warning("orphan.failed", bucket=seen.bucket, key=seen.key, error=str(error))
            if self.report.objects["failed"] + 1 >= _MOST_FAILURES:
                raise
            return replace(seen, reason="failed")
        return seen

    def _take(self, seen: OrphanCandidate) -> None:
        blobs = self._deps.storage
        if seen.reason == "orphan":
            failpoint("orphans.before_quarantine")
            try:
                blobs.copy(seen.bucket, seen.key, blobs.private_bucket, keys.build_quarantine_key(seen.key))
            except ObjectMissing:
                return  # another run was faster
            failpoint("orphans.after_quarantine")
        blobs.delete(seen.bucket, seen.key)
        failpoint("orphans.after_delete")
        log.info("orphan.taken", bucket=seen.bucket, key=seen.key, bytes=seen.bytes, reason=seen.reason)

    def _bucket(self, place: ListedPrefix) -> str:
        blobs = self._deps.storage
        return blobs.public_bucket if place.bucket == "public" else blobs.private_bucket

    def _is_full(self) -> bool:
        return 0 in self._room.values()

    def _is_over(self) -> bool:
        return self._is_full() or (self._until is not None and time.monotonic() > self._until)
