"""Rules 4 and 5 for storage: compare the objects of a bucket with the rows that name them, in the order of keys."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, takewhile
from typing import Final
from uuid import UUID

from db import objects as object_rows
from db.audit.check import Check
from storage import keys
from storage.s3 import ListedObject
from tasks.audit.digests import ExpectedObject, compute_digest, expected_objects
from tasks.audit.findings import Finding, Page
from tasks.step import Deps

PAGE: Final = 500
SWEPT_WITHIN: Final = timedelta(hours=26)  # the orphan sweep runs each night


@dataclass(frozen=True, slots=True)
class ListingScan:
    """Compares rows with the listing of their objects: existence and size, and digests if deep."""

    deps: Deps
    deep: bool
    name: str
    subject: str

    def _compare_all(self, page: Page, expected: Iterable[ExpectedObject], listing: Iterator[ListedObject]) -> Page:
        unnamed: list[ListedObject] = []
        for row, listed in merge_by_key(iter(expected), listing):
            page.checked[self.name] += listed is not None
            if row is not None:
                self._compare(page, row, listed)
            elif listed is not None:
                unnamed.append(listed)
            if len(unnamed) == PAGE:
                self._report_unnamed(page, unnamed)
                unnamed = []
        self._report_unnamed(page, unnamed)
        return page

    def _report_unnamed(self, page: Page, objects: Sequence[ListedObject]) -> None:
        report_unnamed(self.deps, page, objects, self.name)

    def _load(self, ids: list[UUID]) -> Iterable[ExpectedObject]:
        raise NotImplementedError

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        page = Page()
        for row in self._load([UUID(finding.id) for finding in findings if finding.subject == self.subject]):
            stat = self.deps.storage.head(_bucket(self.deps, row.key), row.key)
            self._compare(page, row, ListedObject(row.key, stat.size_bytes, datetime.now(UTC)) if stat else None)
        return page.findings + recheck_unnamed(self.deps, findings)

    def _compare(self, page: Page, expected: ExpectedObject, listed: ListedObject | None) -> None:
        finding, key = partial(Finding, 4, self.subject, str(expected.output_id)), expected.key
        if listed is None:
            if expected.is_required:
                page.add(finding(f"its object {key} is missing", Check(4, self.name, "missing")))
        elif listed.size_bytes != expected.bytes:
            what = f"its object {key} has {listed.size_bytes} bytes, not {expected.bytes}"
            page.add(finding(what, Check(4, self.name, "size")))
        elif self.deep and expected.is_required:
            digest = compute_digest(self.deps, _bucket(self.deps, key), key, page.checked)
            if digest != expected.sha256:
                what = f"its object {key} has the digest {digest}, not {expected.sha256}"
                page.add(finding(what, Check(4, self.name, "digest")))


@dataclass(frozen=True, slots=True)
class ObjectScan(ListingScan):
    """The objects of renders, in pages of whole jobs."""

    name: str = "objects"
    subject: str = "output"

    def check_page(self, after: str) -> Page:
        start = UUID(after) if after else UUID(int=0)
        rows = self.deps.database.run(partial(object_rows.list_output_objects, after=start, limit=PAGE))
        last = str(rows[-1]["job_id"]) if rows else None
        page = Page(after=last)
        return self._compare_all(page, expected_objects(rows), self._listing(after, last))

    def _load(self, ids: list[UUID]) -> list[ExpectedObject]:
        return expected_objects(self.deps.database.run(lambda conn: object_rows.get_output_objects(conn, ids)))

    def _listing(self, after: str, last: str | None) -> Iterator[ListedObject]:
        """List the objects after those of one job up to the last of another: "0" is the character after "/"."""
        storage = self.deps.storage
        start = f"{keys.RENDER_PREFIX}{after}0" if after else ""
        listing = storage.list_objects(storage.public_bucket, keys.RENDER_PREFIX, start)
        if last is None:
            return listing
        return takewhile(lambda listed: listed.key < f"{keys.RENDER_PREFIX}{last}0", listing)


@dataclass(frozen=True, slots=True)
class InputScan:
    """The spooled inputs in the private bucket, in pages of 500."""

    deps: Deps
    name: str = "inputs"

    def check_page(self, after: str) -> Page:
        storage = self.deps.storage
        listed = list(islice(storage.list_objects(storage.private_bucket, keys.INPUT_PREFIX, after), PAGE))
        page = Page(after=listed[-1].key if len(listed) == PAGE else None)
        page.checked["inputs"] += len(listed)
        report_unnamed(self.deps, page, listed, self.name)
        return page

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        return recheck_unnamed(self.deps, findings)


def report_unnamed(deps: Deps, page: Page, objects: Sequence[ListedObject], scope: str) -> None:
    """Add findings for objects that no row names; notes for those that the next sweep may quarantine."""
    named = deps.database.run(lambda conn: object_rows.find_referenced_keys(conn, [listed.key for listed in objects]))
    leased = deps.database.run(object_rows.list_lease_prefixes) if objects else set()
    limit = timedelta(seconds=deps.settings.constants.orphan_age_seconds) + SWEPT_WITHIN
    for listed in objects:
        if listed.key in named:
            continue
        key = keys.parse_render_key(listed.key)
        in_flight = key is not None and key.token_start in leased
        what = f"no row names it; {listed.size_bytes} bytes, stored {listed.modified_at:%Y-%m-%d %H:%M:%S} UTC"
        finding = Finding(5, "object", listed.key, what, Check(5, scope, "unnamed"))
        add = page.add_note if in_flight or datetime.now(UTC) - listed.modified_at < limit else page.add
        add(finding)


def recheck_unnamed(deps: Deps, findings: Iterable[Finding]) -> list[Finding]:
    storage = deps.storage
    orphans = [finding for finding in findings if finding.subject == "object"]
    named = deps.database.run(lambda conn: object_rows.find_referenced_keys(conn, [finding.id for finding in orphans]))
    unnamed = (finding for finding in orphans if finding.id not in named)
    return [finding for finding in unnamed if storage.head(_bucket(deps, finding.id), finding.id) is not None]


def _bucket(deps: Deps, key: str) -> str:
    return deps.storage.public_bucket if key.startswith(keys.RENDER_PREFIX) else deps.storage.private_bucket


def merge_by_key(
    expected: Iterator[ExpectedObject], listing: Iterator[ListedObject]
) -> Iterator[tuple[ExpectedObject | None, ListedObject | None]]:
    """Join two sequences ordered by key; an item without a counterpart is paired with None."""
    row, listed = next(expected, None), next(listing, None)
    while row is not None or listed is not None:
        if listed is None or (row is not None and row.key < listed.key):
            yield row, None
            row = next(expected, None)
        elif row is None or listed.key < row.key:
            yield None, listed
            listed = next(listing, None)
        else:
            yield row, listed
            row, listed = next(expected, None), next(listing, None)
