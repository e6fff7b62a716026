"""Rules 4 and 5 for quarantine: compare its objects with the outputs that name them, in the order of keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import takewhile
from uuid import UUID

from db import objects as object_rows
from db.connection import Row
from storage import keys
from storage.s3 import ListedObject
from tasks.audit import objects
from tasks.audit.digests import ExpectedObject
from tasks.audit.findings import Page


@dataclass(frozen=True, slots=True)
class QuarantineScan(objects.ListingScan):
    """Files in quarantine, in pages of 500 rows; orphans are there too, without a row."""

    name: str = "quarantine"
    subject: str = "output"

    def check_page(self, after: str) -> Page:
        rows = self.deps.database.run(partial(object_rows.list_quarantined, after=after, limit=objects.PAGE))
        last = str(rows[-1]["key"]) if rows else None
        return self._compare_all(Page(after=last), map(_expected, rows), self._listing(after, last))

    def _load(self, ids: list[UUID]) -> Iterator[ExpectedObject]:
        return map(_expected, self.deps.database.run(lambda conn: object_rows.get_quarantined(conn, ids)))

    def _listing(self, after: str, last: str | None) -> Iterator[ListedObject]:
        storage = self.deps.storage
        listing = storage.list_objects(storage.private_bucket, keys.QUARANTINE_PREFIX, after)
        return listing if last is None else takewhile(lambda listed: listed.key <= last, listing)

    def _report_unnamed(self, page: Page, unnamed: Sequence[ListedObject]) -> None:
        """Report objects whose quarantine ended, so that the sweep should have deleted them."""
        limit = datetime.now(UTC) - timedelta(seconds=self.deps.settings.quarantine_seconds) - objects.SWEPT_WITHIN
        old = [listed for listed in unnamed if listed.modified_at < limit and _is_ours(listed.key)]
        objects.report_unnamed(self.deps, page, old, self.name)


def _is_ours(key: str) -> bool:
    return keys.parse_key(key.removeprefix(keys.QUARANTINE_PREFIX)) is not None  # the sweep leaves others


def _expected(row: Row) -> ExpectedObject:
    return ExpectedObject(row["key"], row["id"], row["bytes"], row["sha256"], True)
