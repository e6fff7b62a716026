"""Rules 4 and 5 for quarantine: compare its objects with the outputs that name them, in the order of keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from db import objects as object_rows
from db.connection import Connection, Row
from storage import keys
from storage.s3 import ListedObject
from tasks.audit import objects
from tasks.audit.findings import Page
from tasks.audit.uploads import UploadScan


@dataclass(frozen=True, slots=True)
class QuarantineScan(UploadScan):
    """Files in quarantine, in pages of 500 rows; orphans are there too, without a row."""

    name: str = "quarantine"
    subject: str = "output"
    prefix: str = keys.QUARANTINE_PREFIX

    def _list_rows(self, conn: Connection, after: str) -> list[Row]:
        return object_rows.list_quarantined(conn, after, limit=objects.PAGE)

    def _get_rows(self, conn: Connection, ids: list[UUID]) -> list[Row]:
        return object_rows.get_quarantined(conn, ids)

    def _is_ours(self, listed: ListedObject) -> bool:
        return keys.is_known_key(listed.key.removeprefix(self.prefix))  # the sweep leaves others

    def _report_unnamed(self, page: Page, unnamed: Sequence[ListedObject]) -> None:
        """Report objects whose quarantine ended, so that the sweep should have deleted them."""
        limit = datetime.now(UTC) - timedelta(seconds=self.deps.settings.quarantine_seconds) - objects.SWEPT_WITHIN
        old = [listed for listed in unnamed if listed.modified_at < limit]
        objects.report_unnamed(self.deps, page, old, self.name)
