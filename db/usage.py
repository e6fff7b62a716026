"""Storage used by owner and bucket, counted by a sweep and stored in `storage_use`."""

from typing import Final

from db import orphans
from db.connection import Connection, Row, fetch_all, fetch_one
from db.objects import LONG_TIMEOUT
from db.orphans import ScanCursor

MAX_OWNERS: Final = 100  # listed for each bucket; all others are one row
PAGE: Final = 5000
_FIRST: Final = "00000000-0000-0000-0000-000000000000"

# Concurrent runs would count a page twice; this mode does not block readers.
LOCK_TABLE: Final = "LOCK TABLE storage_use IN SHARE ROW EXCLUSIVE MODE"

# Discarding outputs still occupy storage. The size of a spooled input is unknown until its output is kept.
_FILES: Final = {
    "outputs": """
SELECT f.bucket, owner, f.objects, f.bytes FROM page JOIN outputs o USING (id) JOIN jobs j ON j.id = o.job_id
 CROSS JOIN LATERAL (VALUES
       ('public', num_nonnulls(key, thumb_key), bytes + coalesce(thumb_bytes, 0)),
       ('private', (source_kind = 'object' AND source IS NOT NULL)::integer, coalesce(bytes, 0)),
       ('private', num_nonnulls(quarantine_key), quarantine_bytes)) f (bucket, objects, bytes)
 WHERE f.objects > 0""",
    "uploads": """
SELECT 'private' AS bucket, owner, 1 AS objects, bytes FROM page JOIN uploads USING (id) WHERE deleted_at IS NULL""",
}

COUNT_PAGE: Final = {
    table: f"""
WITH page AS MATERIALIZED (
    SELECT id FROM {table} WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), counted AS (
    INSERT INTO storage_use AS s (bucket, owner, counted_objects, counted_bytes)
    SELECT bucket, owner, sum(objects), sum(bytes) FROM ({files}) files GROUP BY bucket, owner
    ON CONFLICT (bucket, owner) DO UPDATE SET counted_objects = s.counted_objects + excluded.counted_objects,
           counted_bytes = s.counted_bytes + excluded.counted_bytes
)
SELECT id::text FROM page ORDER BY id DESC LIMIT 1"""
    for table, files in _FILES.items()
}

DELETE_UNUSED: Final = "DELETE FROM storage_use WHERE counted_objects = 0"

PUBLISH: Final = """
UPDATE storage_use u SET objects = counted_objects, bytes = counted_bytes, counted_objects = 0, counted_bytes = 0,
       rank = r.rank, computed_at = moment()
  FROM (SELECT bucket, owner, row_number() OVER (PARTITION BY bucket ORDER BY counted_bytes DESC, owner) AS rank
          FROM storage_use) r
 WHERE (u.bucket, u.owner) = (r.bucket, r.owner)
"""

ADD_OTHERS: Final = """
INSERT INTO storage_use (bucket, owner, objects, bytes, rank)
SELECT bucket, '', sum(objects), sum(bytes), 0 FROM storage_use WHERE rank > %(max_owners)s GROUP BY bucket
"""


def count_next_page(conn: Connection) -> bool:
    """
    Add a page of outputs or uploads to the count in progress; return False after the last page, if it was published.

    The page and the cursor are one transaction: a count goes on where it was interrupted, and adds no page twice.
    """
    conn.execute(LOCK_TABLE)
    cursor = orphans.load_cursor(conn, "usage") or ScanCursor("outputs", _FIRST)
    row = fetch_one(conn, COUNT_PAGE[cursor.listing], {"after": cursor.after_key, "limit": PAGE})
    if row or cursor.listing == "outputs":
        position = ScanCursor(cursor.listing, row["id"]) if row else ScanCursor("uploads", _FIRST)
        orphans.save_cursor(conn, "usage", position)
        return True
    conn.execute(LONG_TIMEOUT)
    conn.execute(DELETE_UNUSED)
    conn.execute(PUBLISH)
    conn.execute(ADD_OTHERS, {"max_owners": MAX_OWNERS})
    orphans.save_cursor(conn, "usage", None)
    return False


LIST_LARGEST: Final = """
SELECT bucket, CASE rank WHEN 0 THEN '(others)' ELSE owner END AS owner, objects, bytes, computed_at
  FROM storage_use WHERE rank <= %(max_owners)s ORDER BY bytes DESC, bucket, owner
"""


def list_largest(conn: Connection) -> list[Row]:
    return fetch_all(conn, LIST_LARGEST, {"max_owners": MAX_OWNERS})


LIST_TOTALS: Final = """
SELECT bucket, sum(objects)::bigint AS objects, sum(bytes)::bigint AS bytes, max(computed_at) AS computed_at
  FROM storage_use WHERE rank <= %(max_owners)s GROUP BY bucket ORDER BY bucket
"""


def list_totals(conn: Connection) -> list[Row]:
    return fetch_all(conn, LIST_TOTALS, {"max_owners": MAX_OWNERS})
