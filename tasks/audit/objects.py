"""Rules 4 and 5 for storage: compare objects with the rows that name them, in the order of keys."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import takewhile
from typing import Final, NamedTuple
from uuid import UUID

from db import objects as object_rows
from db.audit.check import Check
from db.connection import Row
from storage import keys
from storage.errors import ObjectMissing
from storage.s3 import ListedObject
from tasks.audit.findings import Finding, Tally
from tasks.step import Deps

PAGE: Final = 500
SWEPT_WITHIN: Final = timedelta(hours=26)  # the orphan sweep runs each night


class ObjectPrefix(NamedTuple):
    """A part of a bucket; `subject`: what names its objects (db/objects.py), "" if only outputs that wait do."""

    subject: str
    prefix: str
    is_ours: Callable[[str], bool] = lambda _key: True


def _is_quarantined(key: str) -> bool:
    return keys.is_known_key(key.removeprefix(keys.QUARANTINE_PREFIX))  # the sweep leaves others


LISTINGS: Final[Mapping[str, ObjectPrefix]] = {
    "objects": ObjectPrefix("output", keys.RENDER_PREFIX),
    "inputs": ObjectPrefix("", keys.INPUT_PREFIX),
    "uploads": ObjectPrefix("upload", "", keys.is_upload_key),
    "quarantine": ObjectPrefix("output", keys.QUARANTINE_PREFIX, _is_quarantined),
}


@dataclass(frozen=True, slots=True)
class ListingScan:
    """Compares rows with the listing of their objects: existence and size, and digests if deep."""

    deps: Deps
    name: str
    deep: bool

    def check_page(self, tally: Tally, after: str) -> str | None:
        listing, storage = LISTINGS[self.name], self.deps.storage
        rows = self.deps.database.run(partial(object_rows.list_objects, scope=self.name, after=after, limit=PAGE))
        last = str(rows[-1]["place"]) if rows else None
        listed = storage.list_objects(_bucket(self.deps, listing.prefix), listing.prefix, after)
        page = listed if last is None else takewhile(lambda item: item.key <= last, listed)
        unnamed: list[ListedObject] = []
        for row, found in merge_by_key(_sort(rows), (item for item in page if listing.is_ours(item.key))):
            tally.checked[self.name] += found is not None
            if row is not None:
                self._compare(tally, row, found)
            elif found is not None:
                unnamed.append(found)
            if len(unnamed) == PAGE:
                self._report_unnamed(tally, unnamed)
                unnamed = []
        self._report_unnamed(tally, unnamed)
        return last

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        tally, storage = Tally(), self.deps.storage
        ids = [UUID(finding.id) for finding in findings if finding.subject != "object"]
        for row in _sort(self.deps.database.run(lambda conn: object_rows.get_objects(conn, self.name, ids))):
            stat = storage.head(_bucket(self.deps, row["key"]), row["key"])
            self._compare(tally, row, ListedObject(row["key"], stat.size_bytes, datetime.now(UTC)) if stat else None)
        orphans = [finding for finding in findings if finding.subject == "object"]
        named = self._find_referenced([finding.id for finding in orphans])
        unnamed = [finding for finding in orphans if finding.id not in named]
        return tally.findings + [x for x in unnamed if storage.head(_bucket(self.deps, x.id), x.id) is not None]

    def _compare(self, tally: Tally, row: Row, listed: ListedObject | None) -> None:
        key, size, sha256 = row["key"], row["bytes"], row["sha256"]

        def report(code: str, problem: str) -> None:
            what, subject = f"its object {key} {problem}", LISTINGS[self.name].subject
            tally.add(Finding(4, subject, str(row["id"]), what, Check(4, self.name, code)))

        if listed is None:
            if row["is_required"]:
                report("missing", "is missing")
        elif listed.size_bytes != size:
            report("size", f"has {listed.size_bytes} bytes, not {size}")
        elif self.deep and row["is_required"]:
            digest = compute_digest(self.deps, _bucket(self.deps, key), key, tally.checked)
            if digest != sha256:
                report("digest", f"has the digest {digest}, not {sha256}")

    def _report_unnamed(self, tally: Tally, objects: Sequence[ListedObject]) -> None:
        """Add findings for objects that no row names; notes for those that the next sweep may quarantine."""
        settings, is_quarantine = self.deps.settings, self.name == "quarantine"
        age_seconds = settings.quarantine_seconds if is_quarantine else settings.constants.orphan_age_seconds
        limit = datetime.now(UTC) - timedelta(seconds=age_seconds) - SWEPT_WITHIN
        named = self._find_referenced([listed.key for listed in objects])
        leased = self.deps.database.run(object_rows.list_lease_prefixes) if objects else set()
        for listed in objects:
            key = keys.parse_render_key(listed.key)
            is_young = listed.modified_at > limit or (key is not None and key.token_start in leased)
            if listed.key in named or (is_young and is_quarantine):
                continue
            what = f"no row names it; {listed.size_bytes} bytes, stored {listed.modified_at:%Y-%m-%d %H:%M:%S} UTC"
            finding = Finding(5, "object", listed.key, what, Check(5, self.name, "unnamed"))
            (tally.add_note if is_young else tally.add)(finding)

    def _find_referenced(self, names: Sequence[str]) -> set[str]:
        return self.deps.database.run(partial(object_rows.find_referenced_keys, keys=names)) if names else set()


@dataclass(frozen=True, slots=True)
class DigestSample:
    """
    Compares the digest of `size` kept files, chosen at random, with the recorded one.

    Storage reports it, or the object is read back: `checked["sample"]` counts both, `checked["read_back"]` the second.
    """

    deps: Deps
    size: int
    name: str = "sample"

    def check_page(self, tally: Tally, after: str) -> None:  # noqa: ARG002 (this scan has a single page)
        output_ids = self.deps.database.run(lambda conn: object_rows.sample_kept_outputs(conn, self.size))
        for finding in self._check(output_ids, tally.checked):
            tally.add(finding)

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        return self._check([UUID(finding.id) for finding in findings], Counter())

    def _check(self, output_ids: list[UUID], checked: Counter[str]) -> list[Finding]:
        storage, findings = self.deps.storage, []
        rows = self.deps.database.run(lambda conn: object_rows.get_objects(conn, "objects", output_ids))
        for row in _sort(row for row in rows if row["is_required"]):
            stat = storage.head(storage.public_bucket, row["key"])
            if stat is None:  # the scan of objects reports it
                continue
            checked["sample"] += 1
            digest = stat.sha256
            if digest is None:
                checked["read_back"] += 1
                digest = compute_digest(self.deps, storage.public_bucket, row["key"], checked)
            if digest is not None and digest != row["sha256"]:
                what = f"its object {row['key']} has the digest {digest}, not {row['sha256']}"
                findings.append(Finding(4, "output", str(row["id"]), what, Check(4, "sample", "digest")))
        return findings


def compute_digest(deps: Deps, bucket: str, key: str, checked: Counter[str]) -> str | None:
    """Return the SHA-256 of an object, read in chunks; None if it is missing. Adds to `checked["bytes"]`."""
    digest = hashlib.sha256()
    try:
        with deps.storage.open_object(bucket, key) as opened:
            for chunk in opened.iterate_chunks():
                digest.update(chunk)
                checked["bytes"] += len(chunk)
    except ObjectMissing:
        return None
    return digest.hexdigest()


def _bucket(deps: Deps, key: str) -> str:
    return deps.storage.public_bucket if key.startswith(keys.RENDER_PREFIX) else deps.storage.private_bucket


def _sort(rows: Iterable[Row]) -> list[Row]:
    """Return rows by key; a check of rows reports those without one, whose key is not below their job's prefix."""
    return sorted((row for row in rows if row["key"] is not None), key=lambda row: str(row["key"]))


def merge_by_key(
    rows: Iterable[Row], listing: Iterator[ListedObject]
) -> Iterator[tuple[Row | None, ListedObject | None]]:
    """Join two sequences ordered by key; an item without a counterpart is paired with None."""
    remaining = iter(rows)
    row, listed = next(remaining, None), next(listing, None)
    while row is not None or listed is not None:
        if listed is None or (row is not None and row["key"] < listed.key):
            yield row, None
            row = next(remaining, None)
        elif row is None or listed.key < row["key"]:
            yield None, listed
            listed = next(listing, None)
        else:
            yield row, listed
            row, listed = next(remaining, None), next(listing, None)
