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
from db.connection import now
from db.orphans import Cursor
from moorage import logs
from moorage.errors import StorageRefused, StorageUnavailable
from moorage.failpoints import failpoint
from storage import keys
from storage.errors import ObjectMissing
from storage.keys import Rendered, Uploaded
from storage.s3 import Listed
from tasks.step import Deps

log = logs.get(__name__)

SWEEP: Final = "orphans"
SECONDS: Final = 240.0  # a run by beat; Celery's hard limit is 600 s
MOST: Final = 1000  # objects that a report lists
_PAGE: Final = 500
_MOST_FAILURES: Final = 3  # one bad object does not end a run, a store that is away does

Reason = Literal["orphan", "leased", "unreadable", "quarantined", "failed"]
WHY: Final[dict[Reason, str]] = {
    "orphan": "no row names it, and none ever will",
    "leased": "stays: the lease that stored it lives",
    "unreadable": "stays: its name is not one that moorage gives",
    "quarantined": "its time in quarantine is over",
    "failed": "stays: storage did not carry it out, see the log",
}


@dataclass(frozen=True, slots=True)
class Place:
    """One listing: a bucket and an exact prefix."""

    bucket: Literal["public", "private"]
    prefix: str

    @property
    def name(self) -> str:
        """Return what a cursor calls it."""
        return f"{self.bucket} {self.prefix}"


PLACES: Final = (
    Place("public", keys.RENDERS),
    Place("public", keys.INPUTS),
    Place("private", keys.RENDERS),
    Place("private", keys.INPUTS),
    Place("private", keys.QUARANTINE),
    Place("private", ""),  # uploads, which stand under their owners
)


@dataclass(frozen=True, slots=True)
class Seen:
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
    listed: list[Seen] = field(default_factory=list)
    stopped_at: Cursor | None = None

    def note(self, seen: Seen) -> None:
        """Count an object, and list it while there is room."""
        self.objects[seen.reason] += 1
        self.bytes[seen.reason] += seen.bytes
        if len(self.listed) < MOST:
            self.listed.append(seen)


def sweep(deps: Deps) -> dict[str, Any]:
    """Take orphans from where the last run stopped, for four minutes at most; returns counts by reason."""
    start = deps.database.run(partial(orphans.cursor, sweep=SWEEP))
    report = run(deps, delete=True, start=start, seconds=SECONDS, remember=True)
    return {"looked_at": report.looked_at, **report.objects, "at_end": report.stopped_at is None}


def run(
    deps: Deps, *, delete: bool, start: Cursor | None = None, seconds: float | None = None, remember: bool = False
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
        if remember:
            deps.database.run(partial(orphans.move, sweep=SWEEP, to=cursor))
    if remember:
        deps.database.run(partial(orphans.move, sweep=SWEEP, to=walk.report.stopped_at))
    return walk.report


class _Walk:
    def __init__(self, deps: Deps, *, delete: bool, until: float | None) -> None:
        self._deps, self._delete, self._until = deps, delete, until
        self._room = dict.fromkeys(("orphan", "quarantined"), deps.settings.constants.orphans_per_run)
        self.report = OrphanReport()

    def go(self, start: Cursor | None) -> Iterator[Cursor]:
        """Go through the places; gives where it is after each page."""
        names = [place.name for place in PLACES]
        first = names.index(start.place) if start and start.place in names else 0
        for number, place in enumerate(PLACES[first:]):
            after = start.after_key if start and number == 0 and start.place == place.name else ""
            for cursor in self._through(place, after):
                if self._is_over():
                    self.report.stopped_at = cursor
                    return
                yield cursor

    def _through(self, place: Place, after: str) -> Iterator[Cursor]:
        listing = self._deps.blobs.list(self._bucket(place), place.prefix, after)
        while page := list(islice(listing, _PAGE)):
            yield Cursor(place.name, self._page(place, page))

    def _page(self, place: Place, page: list[Listed]) -> str:
        """Handle a page up to the cap; returns the last key that was handled."""
        for listed, seen in self._judged(place, page):
            self.report.looked_at += 1
            if seen is not None:
                self._handle(seen)
            if self._is_full():
                return listed.key
        return page[-1].key

    def _judged(self, place: Place, page: list[Listed]) -> Iterator[tuple[Listed, Seen | None]]:
        settings = self._deps.settings
        moment = self._deps.database.run(now)
        if place.prefix == keys.QUARANTINE:
            limit, named = moment - timedelta(seconds=settings.quarantine_seconds), set[str]()
        else:
            limit = moment - timedelta(seconds=settings.constants.orphan_age_seconds)
            named = self._deps.database.run(partial(objects.named, keys=[listed.key for listed in page]))
        for listed in page:
            if not place.prefix and not isinstance(keys.parse(listed.key), Uploaded):
                continue  # of another place, or not ours: the bucket may hold what somebody else put there
            is_old = listed.key not in named and listed.modified_at < limit
            yield listed, self._judge(place, listed) if is_old else None

    def _judge(self, place: Place, listed: Listed) -> Seen | None:
        """Say what an old object is that no row named when the page was read; None when one does by now."""
        original = listed.key.removeprefix(keys.QUARANTINE) if place.prefix == keys.QUARANTINE else listed.key
        told = keys.parse(original)
        seen = partial(Seen, self._bucket(place), listed.key, listed.bytes, listed.modified_at)
        if told is None:
            return seen("unreadable")
        if place.prefix == keys.QUARANTINE:
            return seen("quarantined")
        if not isinstance(told, Rendered):
            return seen("orphan")
        # Under the lock only when it is about to be taken: a token is used once, so what is free now is free for ever.
        refusal = self._deps.database.run(
            lambda conn: orphans.refusal(
                conn, listed.key, told.render_id, told.idx, told.token_start, lock=self._delete
            )
        )
        if refusal == "named":
            return None
        return seen("leased" if refusal == "leased" else "orphan")

    def _handle(self, seen: Seen) -> None:
        if self._delete and seen.reason in self._room:
            self._room[seen.reason] -= 1
            seen = self._tried(seen)
        self.report.note(seen)

    def _tried(self, seen: Seen) -> Seen:
        try:
            self._take(seen)
        except (StorageUnavailable, StorageRefused) as error:
            log.warning("orphan.failed", bucket=seen.bucket, key=seen.key, error=str(error))
            if self.report.objects["failed"] + 1 >= _MOST_FAILURES:
                raise
            return replace(seen, reason="failed")
        return seen

    def _take(self, seen: Seen) -> None:
        blobs = self._deps.blobs
        if seen.reason == "orphan":
            failpoint("orphans.before_quarantine")
            try:
                blobs.copy(seen.bucket, seen.key, blobs.private_bucket, keys.quarantined(seen.key))
            except ObjectMissing:
                return  # another run was faster
            failpoint("orphans.after_quarantine")
        blobs.delete(seen.bucket, seen.key)
        failpoint("orphans.after_delete")
        log.info("orphan.taken", bucket=seen.bucket, key=seen.key, bytes=seen.bytes, reason=seen.reason)

    def _bucket(self, place: Place) -> str:
        blobs = self._deps.blobs
        return blobs.public_bucket if place.bucket == "public" else blobs.private_bucket

    def _is_full(self) -> bool:
        return 0 in self._room.values()

    def _is_over(self) -> bool:
        return self._is_full() or (self._until is not None and time.monotonic() > self._until)
