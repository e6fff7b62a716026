"""Rule 4 for digests: of every object in a deep audit, of a random sample otherwise."""

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
    key: str
    output_id: UUID
    bytes: int
    sha256: str
    is_required: bool  # False for a discarded output, whose object may be deleted already


def expected_objects(rows: Iterable[Row]) -> list[ExpectedObject]:
    """Return the objects of outputs by key; a check of rows reports those whose key is not below their job's prefix."""
    expected = []
    for row in rows:
        prefix, is_kept = f"{keys.RENDER_PREFIX}{row['job_id']}/", row["state"] == "kept"
        thumb = (row["thumb_key"], row["thumb_bytes"], row["thumb_sha256"])
        for key, size, sha256 in ((row["key"], row["bytes"], row["sha256"]), thumb):
            if key is not None and key.startswith(prefix):
                expected.append(ExpectedObject(key, row["id"], size, sha256, is_kept))
    return sorted(expected, key=lambda item: item.key)


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


@dataclass(frozen=True, slots=True)
class DigestSample:
    """
    Compares the digest of `size` kept files, chosen at random, with the recorded one.

    Storage reports it, or the object is read back: `checked["sample"]` counts both, `checked["read_back"]` the second.
    """

    deps: Deps
    size: int
    name: str = "sample"

    def check_page(self, after: str) -> Page:  # noqa: ARG002 (the signature of a scan: this one has a single page)
        page = Page()
        output_ids = self.deps.database.run(lambda conn: objects.sample_kept_outputs(conn, self.size))
        for finding in self._check(output_ids, page.checked):
            page.add(finding)
        return page

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        return self._check([UUID(finding.id) for finding in findings], Counter())

    def _check(self, output_ids: list[UUID], checked: Counter[str]) -> list[Finding]:
        storage, findings = self.deps.storage, []
        rows = self.deps.database.run(lambda conn: objects.get_output_objects(conn, output_ids))
        for expected in expected_objects(row for row in rows if row["state"] == "kept"):
            stat = storage.head(storage.public_bucket, expected.key)
            if stat is None:  # the scan of objects reports it
                continue
            checked["sample"] += 1
            digest = stat.sha256
            if digest is None:
                checked["read_back"] += 1
                digest = compute_digest(self.deps, storage.public_bucket, expected.key, checked)
            if digest is not None and digest != expected.sha256:
                what = f"its object {expected.key} has the digest {digest}, not {expected.sha256}"
                findings.append(Finding(4, "output", str(expected.output_id), what, Check(4, "sample", "digest")))
        return findings
