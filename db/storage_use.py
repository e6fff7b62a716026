"""Storage used by owner and bucket, counted by a sweep and stored in `storage_use`."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from db import orphans
from db.connection import Connection, Row, current_time, fetch_all, fetch_one
from db.objects import LONG_TIMEOUT
from db.orphans import ScanCursor

MAX_OWNERS: Final = 100  # listed for each bucket; all others are one row
PAGE: Final = 5000

# Concurrent runs would count a page twice; this mode does not block readers.
LOCK_TABLE: Final = "LOCK TABLE storage_use IN SHARE ROW EXCLUSIVE MODE"

# Discarding outputs still occupy storage. The size of a spooled input is unknown until its output is kept.
COUNT_PAGE: Final = """
WITH page AS MATERIALIZED (
    (SELECT id FROM outputs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s)
    UNION ALL (SELECT id FROM uploads WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) ORDER BY id LIMIT %(limit)s
), files AS (
    SELECT f.bucket, owner, f.objects, f.bytes FROM page JOIN outputs o USING (id) JOIN jobs j ON j.id = o.job_id
     CROSS JOIN LATERAL (VALUES
           ('public', num_nonnulls(key, thumb_key), bytes + coalesce(thumb_bytes, 0)),
           ('private', (source_kind = 'object' AND source IS NOT NULL)::integer, coalesce(bytes, 0)),
           ('private', num_nonnulls(quarantine_key), quarantine_bytes)) f (bucket, objects, bytes) WHERE f.objects > 0
    UNION ALL SELECT 'private', owner, 1, bytes FROM page JOIN uploads USING (id) WHERE deleted_at IS NULL
), counted AS (
    INSERT INTO storage_use AS s (bucket, owner, counted_objects, counted_bytes)
    SELECT bucket, owner, sum(objects), sum(bytes) FROM files GROUP BY bucket, owner
    ON CONFLICT (bucket, owner) DO UPDATE SET counted_objects = s.counted_objects + excluded.counted_objects,
           counted_bytes = s.counted_bytes + excluded.counted_bytes
)
SELECT id::text FROM page ORDER BY id DESC LIMIT 1
"""

DELETE_UNUSED: Final = "DELETE FROM storage_use WHERE counted_objects = 0"

PUBLISH: Final = """
UPDATE storage_use u SET objects = counted_objects, bytes = counted_bytes, counted_objects = 0, counted_bytes = 0,
       rank = r.rank, computed_at = coalesce(nullif(split_part(%(place)s, ' since ', 2), '')::timestamptz, moment())
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
    Add a page, in one transaction with its place, to the count in progress; return False if it was published.

    `computed_at` is ten seconds before the count began, so that what was stored meanwhile, or in a transaction of that
    time, is added to an owner's use (`owner_limits`). If a later page has it, too, it counts twice until the next one:
    a limit is reached too early, never passed.
    """
    conn.execute(LOCK_TABLE)
    started = f"outputs, uploads since {current_time(conn) - timedelta(seconds=10)}"
    cursor = orphans.load_cursor(conn, "usage") or ScanCursor(started, str(UUID(int=0)))
    row = fetch_one(conn, COUNT_PAGE, {"after": cursor.after_key, "limit": PAGE})
    orphans.save_cursor(conn, "usage", ScanCursor(cursor.listing, row["id"]) if row else None)
    if row is None:
        conn.execute(LONG_TIMEOUT)
        for sql in (DELETE_UNUSED, PUBLISH, ADD_OTHERS):
            conn.execute(sql, {"max_owners": MAX_OWNERS, "place": cursor.listing})
    return row is not None


LIST_LARGEST: Final = """
SELECT bucket, CASE rank WHEN 0 THEN '(others)' ELSE owner END AS owner, objects, bytes, computed_at
  FROM storage_use WHERE rank <= %(max_owners)s ORDER BY bytes DESC, bucket, owner
"""


def list_largest(conn: Connection) -> list[Row]:
    return fetch_all(conn, LIST_LARGEST, {"max_owners": MAX_OWNERS})
