"""Rules 4 and 5 over storage: the objects of a bucket beside the rows that name them, both in the order of keys."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, takewhile
from typing import Final
from uuid import UUID

from db import objects as inventory
from db.audit.check import Check
from storage import keys
from storage.keys import RenderKey
from storage.s3 import ListedObject
from tasks.audit.digests import ExpectedObject, compute_digest, expected_objects
from tasks.audit.findings import Finding, Page
from tasks.step import Deps

PAGE: Final = 500
SWEPT_WITHIN: Final = timedelta(hours=26)  # the orphan sweep comes each night


@dataclass(frozen=True, slots=True)
class ListingScan:
    """Rows beside the listing of what they name, page by page: existence and size by listing, digests when deep."""

    deps: Deps
    deep: bool
    name: str
    subject: str

    def _walk(self, page: Page, expected: Iterable[ExpectedObject], listing: Iterator[ListedObject]) -> Page:
        """Compare the objects that rows name, and tell of those that none does."""
        unnamed: list[ListedObject] = []
        for row, listed in merge_by_key(iter(expected), listing):
            page.checked[self.name] += listed is not None
            if row is not None:
                self._compare(page, row, listed)
            elif listed is not None:
                unnamed.append(listed)
            if len(unnamed) == PAGE:
                report_unnamed(self.deps, page, unnamed, self.name)
                unnamed = []
        report_unnamed(self.deps, page, unnamed, self.name)
        return page

    def _look_again(self, expected: Iterable[ExpectedObject], findings: list[Finding]) -> list[Finding]:
        """Ask storage once more for objects, and for those found that no row named."""
        page = Page()
        for row in expected:
            stat = self.deps.storage.head(_bucket(self.deps, row.key), row.key)
            self._compare(page, row, ListedObject(row.key, stat.size_bytes, datetime.now(UTC)) if stat else None)
        return page.findings + recheck_unnamed(self.deps, findings)

    def _compare(self, page: Page, expected: ExpectedObject, listed: ListedObject | None) -> None:
        found, key = partial(Finding, 4, self.subject, str(expected.output_id)), expected.key
        if listed is None:
            if expected.is_required:
                page.add(found(f"its object {key} is missing", Check(4, self.name, "missing")))
        elif listed.size_bytes != expected.bytes:
            page.add(
                found(
                    f"its object {key} has {listed.size_bytes} bytes, not {expected.bytes}", Check(4, self.name, "size")
                )
            )
        elif self.deep and expected.is_required:
            digest = compute_digest(self.deps, _bucket(self.deps, key), key, page.checked)
            if digest != expected.sha256:
                what = f"its object {key} has the digest {digest}, not {expected.sha256}"
                page.add(found(what, Check(4, self.name, "digest")))


@dataclass(frozen=True, slots=True)
class ObjectScan(ListingScan):
    """The objects of renders, in pages of whole jobs."""

    name: str = "objects"
    subject: str = "output"

    def page(self, after: str) -> Page:
        """Look at the objects of the next jobs, and at what is listed between them."""
        start = UUID(after) if after else UUID(int=0)
        rows = self.deps.database.run(partial(inventory.list_output_objects, after=start, limit=PAGE))
        last = str(rows[-1]["job_id"]) if rows else None
        page = Page(after=last)
        return self._walk(page, expected_objects(rows), self._listing(after, last))

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        """Ask storage and rows once more for what was found."""
        ids = [UUID(finding.id) for finding in findings if finding.subject == self.subject]
        rows = self.deps.database.run(lambda conn: inventory.get_output_objects(conn, ids))
        return self._look_again(expected_objects(rows), findings)

    def _listing(self, after: str, last: str | None) -> Iterator[ListedObject]:
        """List from behind the objects of one job to the last of another: "0" is the character behind "/"."""
        blobs = self.deps.storage
        start = f"{keys.RENDER_PREFIX}{after}0" if after else ""
        listing = blobs.list_objects(blobs.public_bucket, keys.RENDER_PREFIX, start)
        if last is None:
            return listing
        return takewhile(lambda listed: listed.key < f"{keys.RENDER_PREFIX}{last}0", listing)


@dataclass(frozen=True, slots=True)
class InputScan:
    """The spooled input files of the private bucket."""

    deps: Deps
    name: str = "inputs"

    def page(self, after: str) -> Page:
        """Look at the next 500 input files."""
        blobs = self.deps.storage
        listed = list(islice(blobs.list_objects(blobs.private_bucket, keys.INPUT_PREFIX, after), PAGE))
        page = Page(after=listed[-1].key if len(listed) == PAGE else None)
        page.checked["inputs"] += len(listed)
        report_unnamed(self.deps, page, listed, self.name)
        return page

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        """Ask storage and rows once more for what was found."""
        return recheck_unnamed(self.deps, findings)


def report_unnamed(deps: Deps, page: Page, objects: Sequence[ListedObject], place: str) -> None:
    """Tell of objects that no row names: as notes while the sweep has not had its turn."""
    named = deps.database.run(lambda conn: inventory.find_referenced_keys(conn, [listed.key for listed in objects]))
    leased = deps.database.run(inventory.list_lease_prefixes) if objects else set()
    limit = timedelta(seconds=deps.settings.constants.orphan_age_seconds) + SWEPT_WITHIN
    for listed in objects:
        if listed.key in named:
            continue
        told = keys.parse_key(listed.key)
        in_flight = isinstance(told, RenderKey) and told.token_start in leased
        what = f"no row names it; {listed.size_bytes} bytes, stored {listed.modified_at:%Y-%m-%d %H:%M:%S} UTC"
        finding = Finding(5, "object", listed.key, what, Check(5, place, "unnamed"))
        if in_flight or datetime.now(UTC) - listed.modified_at < limit:
            page.add_note(finding)
        else:
            page.add(finding)


def recheck_unnamed(deps: Deps, findings: Iterable[Finding]) -> list[Finding]:
    """Return those findings whose object still is there and still named by no row."""
    blobs = deps.storage
    orphans = [finding for finding in findings if finding.subject == "object"]
    named = deps.database.run(lambda conn: inventory.find_referenced_keys(conn, [finding.id for finding in orphans]))
    return [
        finding
        for finding in orphans
        if finding.id not in named and blobs.head(_bucket(deps, finding.id), finding.id) is not None
    ]


def _bucket(deps: Deps, key: str) -> str:
    return deps.storage.public_bucket if key.startswith(keys.RENDER_PREFIX) else deps.storage.private_bucket


def merge_by_key(
    expected: Iterator[ExpectedObject], listing: Iterator[ListedObject]
) -> Iterator[tuple[ExpectedObject | None, ListedObject | None]]:
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
