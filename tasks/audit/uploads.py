"""Rules 4 and 5 for uploads: compare the private bucket with their rows, in the order of keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from uuid import UUID

from db import uploads
from db.connection import Connection, Row
from storage import keys
from storage.s3 import ListedObject
from tasks.audit import objects
from tasks.audit.digests import ExpectedObject
from tasks.audit.findings import Page


@dataclass(frozen=True, slots=True)
class UploadScan(objects.ListingScan):
    """Uploads, in pages of 500 rows."""

    name: str = "uploads"
    subject: str = "upload"
    prefix: str = ""

    def check_page(self, after: str) -> Page:
        rows = self.deps.database.run(partial(self._list_rows, after=after))
        last = str(rows[-1]["key"]) if rows else None
        return self._compare_all(Page(after=last), map(_expected, rows), self._listing(after, last))

    def _load(self, ids: list[UUID]) -> Iterator[ExpectedObject]:
        return map(_expected, self.deps.database.run(partial(self._get_rows, ids=ids)))

    def _listing(self, after: str, last: str | None) -> Iterator[ListedObject]:
        """List the objects after one key up to another; the bucket has others, too."""
        listing = self.deps.storage.list_objects(self.deps.storage.private_bucket, self.prefix, after)
        return filter(self._is_ours, listing if last is None else takewhile(lambda listed: listed.key <= last, listing))

    def _list_rows(self, conn: Connection, after: str) -> list[Row]:
        return uploads.list_upload_objects(conn, after, limit=objects.PAGE)

    def _get_rows(self, conn: Connection, ids: list[UUID]) -> list[Row]:
        return uploads.get_upload_objects(conn, ids)

    def _is_ours(self, listed: ListedObject) -> bool:
        return keys.is_upload_key(listed.key)


def _expected(row: Row) -> ExpectedObject:
    return ExpectedObject(row["key"], row["id"], row["bytes"], row["sha256"], True)
