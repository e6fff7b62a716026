"""Rule 4 down to the bytes: digests of objects, re-read by a deep audit, and a sample that storage is asked for."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from db import objects
from db.audit.check import Check
from db.connection import Row
from storage import keys
from storage.errors import ObjectMissing
from tasks.audit.findings import Finding, Page
from tasks.step import Deps


@dataclass(frozen=True, slots=True)
class ExpectedObject:
    """An object that a row names."""

    key: str
    output_id: UUID
    bytes: int
    sha256: str
    is_required: bool  # kept; that of a discarded output may be deleted already


def expected_objects(rows: Iterable[Row]) -> list[ExpectedObject]:
    """Return the objects of outputs by key, but for those whose key is not of their job: a check of rows names them."""
    found = []
    for row in rows:
        start, kept = f"{keys.RENDER_PREFIX}{row['job_id']}/", row["state"] == "kept"
        thumb = (row["thumb_key"], row["thumb_bytes"], row["thumb_sha256"])
        for key, size, sha256 in ((row["key"], row["bytes"], row["sha256"]), thumb):
            if key is not None and key.startswith(start):
                found.append(ExpectedObject(key, row["id"], size, sha256, kept))
    return sorted(found, key=lambda expected: expected.key)


def compute_digest(deps: Deps, bucket: str, key: str, checked: Counter[str]) -> str | None:
    """Return the digest of an object's bytes, read in chunks; None when it is gone."""
    digest = hashlib.sha256()
    try:
        with deps.storage.open_object(bucket, key) as opened:
            for chunk in opened.iterate_chunks():
                digest.update(chunk)
                checked["bytes"] += len(chunk)
    except ObjectMissing:
        return None
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DigestSample:
    """Compares the digest that storage reports for `size` kept files, chosen at random, with the recorded one."""

    deps: Deps
    size: int
    name: str = "sample"

    def page(self, after: str) -> Page:  # noqa: ARG002 (the signature of a scan: this one has a single page)
        """Check the whole sample."""
        page = Page()
        output_ids = self.deps.database.run(lambda conn: objects.sample_kept_outputs(conn, self.size))
        for finding in self._check(output_ids, page.checked):
            page.add(finding)
        return page

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        """Request the digests of the findings from storage again."""
        return self._check([UUID(finding.id) for finding in findings], Counter())

    def _check(self, output_ids: list[UUID], checked: Counter[str]) -> list[Finding]:
        blobs, wrong = self.deps.storage, []
        rows = self.deps.database.run(lambda conn: objects.get_output_objects(conn, output_ids))
        for expected in expected_objects(row for row in rows if row["state"] == "kept"):
            stat = blobs.head(blobs.public_bucket, expected.key)
            checked["sample"] += 1
            if stat is not None and stat.sha256 is not None and stat.sha256 != expected.sha256:
                what = f"its object {expected.key} has the digest {stat.sha256}, not {expected.sha256}"
                wrong.append(Finding(4, "output", str(expected.output_id), what, Check(4, "sample", "digest")))
        return wrong
