"""Rules 4 and 5 over storage: the objects of a bucket beside the rows that name them, both in the order of keys."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, takewhile
from typing import Final
from uuid import UUID

from db import objects as inventory
from storage import keys
from storage.keys import Rendered
from storage.s3 import Listed
from tasks.audit.digests import Expected, digest_of, of_rows
from tasks.audit.findings import Finding, Page
from tasks.step import Deps

PAGE: Final = 500
SWEPT_WITHIN: Final = timedelta(hours=26)  # the orphan sweep comes each night


@dataclass(frozen=True, slots=True)
class Beside:
    """Rows beside the listing of what they name, page by page: existence and size by listing, digests when deep."""

    deps: Deps
    deep: bool
    name: str
    subject: str

    def _walk(self, page: Page, expected: Iterable[Expected], listing: Iterator[Listed]) -> Page:
        """Compare the objects that rows name, and tell of those that none does."""
        unnamed: list[Listed] = []
        for row, listed in merge(iter(expected), listing):
            page.checked[self.name] += listed is not None
            if row is not None:
                self._compare(page, row, listed)
            elif listed is not None:
                unnamed.append(listed)
            if len(unnamed) == PAGE:
                orphans(self.deps, page, unnamed, self.name)
                unnamed = []
        orphans(self.deps, page, unnamed, self.name)
        return page

    def _look_again(self, expected: Iterable[Expected], findings: list[Finding]) -> list[Finding]:
        """Ask storage once more for objects, and for those found that no row named."""
        page = Page()
        for row in expected:
            stat = self.deps.blobs.head(_bucket(self.deps, row.key), row.key)
            self._compare(page, row, Listed(row.key, stat.bytes, datetime.now(UTC)) if stat else None)
        return page.findings + still_unnamed(self.deps, findings)

    def _compare(self, page: Page, expected: Expected, listed: Listed | None) -> None:
        found, key = partial(Finding, 4, self.subject, str(expected.output_id)), expected.key
        if listed is None:
            if expected.must_be:
                page.add(found(f"its object {key} is missing", f"4 {self.name} missing"))
        elif listed.bytes != expected.bytes:
            page.add(found(f"its object {key} has {listed.bytes} bytes, not {expected.bytes}", f"4 {self.name} size"))
        elif self.deep and expected.must_be:
            digest = digest_of(self.deps, _bucket(self.deps, key), key, page.checked)
            if digest != expected.sha256:
                what = f"its object {key} has the digest {digest}, not {expected.sha256}"
                page.add(found(what, f"4 {self.name} digest"))


@dataclass(frozen=True, slots=True)
class Objects(Beside):
    """The objects of renders, in pages of whole jobs."""

    name: str = "objects"
    subject: str = "output"

    def page(self, after: str) -> Page:
        """Look at the objects of the next jobs, and at what is listed between them."""
        start = UUID(after) if after else UUID(int=0)
        rows = self.deps.database.run(partial(inventory.objects, after=start, limit=PAGE))
        last = str(rows[-1]["job_id"]) if rows else None
        page = Page(after=last)
        page.kept.extend(str(row["id"]) for row in rows if row["state"] == "kept")
        return self._walk(page, of_rows(rows), self._listing(after, last))

    def again(self, findings: list[Finding]) -> list[Finding]:
        """Ask storage and rows once more for what was found."""
        ids = [UUID(finding.id) for finding in findings if finding.subject == self.subject]
        rows = self.deps.database.run(lambda conn: inventory.some_objects(conn, ids))
        return self._look_again(of_rows(rows), findings)

    def _listing(self, after: str, last: str | None) -> Iterator[Listed]:
        """List from behind the objects of one job to the last of another: "0" is the character behind "/"."""
        blobs = self.deps.blobs
        start = f"{keys.RENDERS}{after}0" if after else ""
        listing = blobs.list(blobs.public_bucket, keys.RENDERS, start)
        if last is None:
            return listing
        return takewhile(lambda listed: listed.key < f"{keys.RENDERS}{last}0", listing)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The spooled input files of the private bucket."""

    deps: Deps
    name: str = "inputs"

    def page(self, after: str) -> Page:
        """Look at the next 500 input files."""
        blobs = self.deps.blobs
        listed = list(islice(blobs.list(blobs.private_bucket, keys.INPUTS, after), PAGE))
        page = Page(after=listed[-1].key if len(listed) == PAGE else None)
        page.checked["inputs"] += len(listed)
        orphans(self.deps, page, listed, self.name)
        return page

    def again(self, findings: list[Finding]) -> list[Finding]:
        """Ask storage and rows once more for what was found."""
        return still_unnamed(self.deps, findings)


def orphans(deps: Deps, page: Page, objects: Sequence[Listed], place: str) -> None:
    """Tell of objects that no row names: as notes while the sweep has not had its turn."""
    named = deps.database.run(lambda conn: inventory.named(conn, [listed.key for listed in objects]))
    leased = deps.database.run(inventory.leased) if objects else set()
    limit = timedelta(seconds=deps.settings.constants.orphan_age_seconds) + SWEPT_WITHIN
    for listed in objects:
        if listed.key in named:
            continue
        told = keys.parse(listed.key)
        in_flight = isinstance(told, Rendered) and told.token_start in leased
        what = f"no row names it; {listed.bytes} bytes, stored {listed.modified_at:%Y-%m-%d %H:%M:%S} UTC"
        finding = Finding(5, "object", listed.key, what, f"5 {place} unnamed")
        if in_flight or datetime.now(UTC) - listed.modified_at < limit:
            page.note(finding)
        else:
            page.add(finding)


def still_unnamed(deps: Deps, findings: Iterable[Finding]) -> list[Finding]:
    """Return those findings whose object still is there and still named by no row."""
    blobs = deps.blobs
    orphans = [finding for finding in findings if finding.subject == "object"]
    named = deps.database.run(lambda conn: inventory.named(conn, [finding.id for finding in orphans]))
    return [
        finding
        for finding in orphans
        if finding.id not in named and blobs.head(_bucket(deps, finding.id), finding.id) is not None
    ]


def _bucket(deps: Deps, key: str) -> str:
    return deps.blobs.public_bucket if key.startswith(keys.RENDERS) else deps.blobs.private_bucket


def merge(expected: Iterator[Expected], listing: Iterator[Listed]) -> Iterator[tuple[Expected | None, Listed | None]]:
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
