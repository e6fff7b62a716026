"""Rules 4 and 5 for uploads: the private bucket beside the rows that name its input files, in the order of keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from uuid import UUID

from db import uploads
from db.connect import Row
from storage import keys
from storage.keys import Uploaded
from storage.s3 import Listed
from tasks import audit_objects
from tasks.audit_bytes import Expected, digest_of
from tasks.audit_finding import Finding, Page
from tasks.deps import Deps


@dataclass(frozen=True, slots=True)
class Uploads:
    """Input files in pages of 500 rows: existence and size by listing, digests when deep."""

    deps: Deps
    deep: bool
    name: str = "uploads"

    def page(self, after: str) -> Page:
        """Look at the next uploads, and at what is listed between them."""
        rows = self.deps.database.run(partial(uploads.stored, after=after, limit=audit_objects.PAGE))
        last = str(rows[-1]["key"]) if rows else None
        page = Page(after=last)
        unnamed: list[Listed] = []
        for expected, listed in audit_objects.merge(map(_expected, rows), self._listing(after, last)):
            page.checked["uploads"] += listed is not None
            if expected is not None:
                self._compare(page, expected, listed)
            elif listed is not None:
                unnamed.append(listed)
            if len(unnamed) == audit_objects.PAGE:
                audit_objects.orphans(self.deps, page, unnamed, self.name)
                unnamed = []
        audit_objects.orphans(self.deps, page, unnamed, self.name)
        return page

    def again(self, findings: list[Finding]) -> list[Finding]:
        """Ask storage and rows once more for what was found."""
        page, blobs = Page(), self.deps.blobs
        ids = [UUID(finding.id) for finding in findings if finding.subject == "upload"]
        for expected in map(_expected, self.deps.database.run(lambda conn: uploads.some(conn, ids))):
            stat = blobs.head(blobs.private_bucket, expected.key)
            self._compare(page, expected, Listed(expected.key, stat.bytes, datetime.now(UTC)) if stat else None)
        return page.findings + audit_objects.still_unnamed(self.deps, findings)

    def _listing(self, after: str, last: str | None) -> Iterator[Listed]:
        """List from behind one key to another; what else lies in the bucket is no upload."""
        blobs = self.deps.blobs
        listing = blobs.list(blobs.private_bucket, "", after)
        if last is not None:
            listing = takewhile(lambda listed: listed.key <= last, listing)
        return (listed for listed in listing if isinstance(keys.parse(listed.key), Uploaded))

    def _compare(self, page: Page, expected: Expected, listed: Listed | None) -> None:
        found, key = partial(Finding, 4, "upload", str(expected.output_id)), expected.key
        if listed is None:
            page.add(found(f"its object {key} is missing", f"4 {self.name} missing"))
        elif listed.bytes != expected.bytes:
            page.add(found(f"its object {key} has {listed.bytes} bytes, not {expected.bytes}", f"4 {self.name} size"))
        elif self.deep:
            digest = digest_of(self.deps, key, page.checked, bucket=self.deps.blobs.private_bucket)
            if digest != expected.sha256:
                what = f"its object {key} has the digest {digest}, not {expected.sha256}"
                page.add(found(what, f"4 {self.name} digest"))


def _expected(row: Row) -> Expected:
    return Expected(row["key"], row["id"], row["bytes"], row["sha256"], True)
