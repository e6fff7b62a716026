"""Rules 4 and 5 over storage: the objects of a bucket beside the rows that name them, both in the order of keys."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Final
from uuid import UUID

from db import inventory
from db.connect import Row
from storage import keys
from storage.failures import ObjectMissing
from storage.keys import Rendered
from storage.s3 import Listed
from tasks.audit_finding import Finding
from tasks.deps import Deps

YOUNG: Final = timedelta(hours=1)  # an object that no row names yet may be of work in flight
NOTES: Final = 1000
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Expected:
    """An object that a row names."""

    key: str
    output_id: UUID
    bytes: int
    sha256: str
    must_be: bool  # kept; that of a discarded output may be deleted already


class Walk:
    """One walk through both buckets; `notes` and `checked` are filled as it goes."""

    def __init__(self, deps: Deps, *, deep: bool) -> None:
        self._deps = deps
        self._deep = deep
        self.notes: list[Finding] = []
        self.checked = {"objects": 0, "bytes": 0}

    def run(self) -> Iterator[Finding]:
        """Compare what is listed with what rows name; a page of each in memory."""
        blobs = self._deps.blobs
        unnamed: list[Listed] = []
        listing = blobs.list(blobs.public_bucket, keys.RENDERS)
        for expected, listed in _merge(self._expected(), listing):
            if listed is not None:
                self.checked["objects"] += 1
            if expected is not None:
                yield from self._compare(expected, listed)
            elif listed is not None:
                unnamed.append(listed)
                if len(unnamed) == _PAGE:
                    yield from self._orphans(unnamed)
                    unnamed = []
        yield from self._orphans(unnamed)
        yield from self._inputs()

    def again(self, findings: Sequence[Finding]) -> Iterator[Finding]:
        """Look a second time at what was found, and at nothing else."""
        blobs = self._deps.blobs
        outputs = [UUID(finding.id) for finding in findings if finding.subject == "output"]
        rows = self._deps.database.run(lambda conn: inventory.some_objects(conn, outputs))
        for expected in _of_rows(rows):
            stat = blobs.head(blobs.public_bucket, expected.key)
            now = datetime.now(UTC)
            yield from self._compare(expected, Listed(expected.key, stat.bytes, now) if stat else None)
        orphans = [finding for finding in findings if finding.subject == "object"]
        named = self._deps.database.run(lambda conn: inventory.named(conn, [finding.id for finding in orphans]))
        for finding in orphans:
            bucket = blobs.private_bucket if finding.id.startswith(keys.INPUTS) else blobs.public_bucket
            if finding.id not in named and blobs.head(bucket, finding.id) is not None:
                yield finding

    def _expected(self) -> Iterator[Expected]:
        after = UUID(int=0)
        while rows := self._deps.database.run(partial(inventory.objects, after=after)):
            yield from sorted(_of_rows(rows), key=lambda expected: expected.key)
            after = rows[-1]["job_id"]

    def _compare(self, expected: Expected, listed: Listed | None) -> Iterator[Finding]:
        output = partial(Finding, 4, "output", str(expected.output_id))
        if listed is None:
            if expected.must_be:
                yield output(f"its object {expected.key} is missing")
        elif listed.bytes != expected.bytes:
            yield output(f"its object {expected.key} has {listed.bytes} bytes, not {expected.bytes}")
        elif self._deep and expected.must_be:
            digest = self._digest(expected.key)
            if digest != expected.sha256:
                yield output(f"its object {expected.key} has the digest {digest}, not {expected.sha256}")

    def _digest(self, key: str) -> str | None:
        """Return the digest of an object's bytes; None when it has disappeared meanwhile."""
        digest, blobs = hashlib.sha256(), self._deps.blobs
        try:
            with blobs.open(blobs.public_bucket, key) as opened:
                for chunk in opened.chunks():
                    digest.update(chunk)
                    self.checked["bytes"] += len(chunk)
        except ObjectMissing:
            return None
        return digest.hexdigest()

    def _inputs(self) -> Iterator[Finding]:
        blobs = self._deps.blobs
        listing = blobs.list(blobs.private_bucket, keys.INPUTS)
        while page := list(islice(listing, _PAGE)):
            self.checked["objects"] += len(page)
            yield from self._orphans(page)

    def _orphans(self, page: Sequence[Listed]) -> Iterator[Finding]:
        """Tell of objects that no row names: as notes while they may be of work in flight."""
        named = self._deps.database.run(lambda conn: inventory.named(conn, [listed.key for listed in page]))
        leased = self._deps.database.run(inventory.leased)
        for listed in page:
            if listed.key in named:
                continue
            told = keys.parse(listed.key)
            in_flight = isinstance(told, Rendered) and told.token_start in leased
            what = f"no row names it; {listed.bytes} bytes, stored {listed.modified_at:%Y-%m-%d %H:%M:%S} UTC"
            finding = Finding(5, "object", listed.key, what)
            if in_flight or datetime.now(UTC) - listed.modified_at < YOUNG:
                if len(self.notes) < NOTES:
                    self.notes.append(finding)
            else:
                yield finding


def _of_rows(rows: Iterable[Row]) -> Iterator[Expected]:
    """Return the objects of outputs, but for those whose key is not of their job: the order of keys would be lost."""
    for row in rows:
        start, kept = f"{keys.RENDERS}{row['job_id']}/", row["state"] == "kept"
        for key, size, sha256 in ((row["key"], row["bytes"], row["sha256"]), _thumb(row)):
            if key is not None and key.startswith(start):
                yield Expected(key, row["id"], size, sha256, kept)


def _thumb(row: Row) -> tuple[str | None, int, str]:
    return row["thumb_key"], row["thumb_bytes"], row["thumb_sha256"]


def _merge(expected: Iterator[Expected], listing: Iterator[Listed]) -> Iterator[tuple[Expected | None, Listed | None]]:
    """Pair two sequences in the order of their keys; what stands in one alone has None beside it."""
    row, thing = next(expected, None), next(listing, None)
    while row is not None or thing is not None:
        if thing is None or (row is not None and row.key < thing.key):
            yield row, None
            row = next(expected, None)
        elif row is None or thing.key < row.key:
            yield None, thing
            thing = next(listing, None)
        else:
            yield row, thing
            row, thing = next(expected, None), next(listing, None)
