"""Rules 4 and 5 for uploads: compare the private bucket with their rows, in the order of keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from uuid import UUID

from db import uploads
from db.connection import Row
from storage import keys
from storage.keys import UploadKey
from storage.s3 import ListedObject
from tasks.audit import objects
from tasks.audit.digests import ExpectedObject
from tasks.audit.findings import Page


@dataclass(frozen=True, slots=True)
class UploadScan(objects.ListingScan):
    """Uploads, in pages of 500 rows."""

    name: str = "uploads"
    subject: str = "upload"

    def check_page(self, after: str) -> Page:
        rows = self.deps.database.run(partial(uploads.list_upload_objects, after=after, limit=objects.PAGE))
        last = str(rows[-1]["key"]) if rows else None
        return self._compare_all(Page(after=last), map(_expected, rows), self._listing(after, last))

    def _load(self, ids: list[UUID]) -> Iterator[ExpectedObject]:
        return map(_expected, self.deps.database.run(lambda conn: uploads.get_upload_objects(conn, ids)))

    def _listing(self, after: str, last: str | None) -> Iterator[ListedObject]:
        """List the uploads after one key up to another; the bucket has other objects, too."""
        storage = self.deps.storage
        listing = storage.list_objects(storage.private_bucket, "", after)
        if last is not None:
            listing = takewhile(lambda listed: listed.key <= last, listing)
        return (listed for listed in listing if isinstance(keys.parse_key(listed.key), UploadKey))


def _expected(row: Row) -> ExpectedObject:
    return ExpectedObject(row["key"], row["id"], row["bytes"], row["sha256"], True)
