"""Storage used by owner and bucket, counted by a sweep and stored in `storage_use`."""

from typing import Final

from db.connection import Connection, Row, fetch_all
from db.objects import LONG_TIMEOUT

MAX_OWNERS: Final = 100  # listed for each bucket; all others are one row

# Concurrent counts would insert the same rows; this mode does not block readers.
LOCK_TABLE: Final = "LOCK TABLE storage_use IN SHARE ROW EXCLUSIVE MODE"

DELETE_ALL: Final = "DELETE FROM storage_use"

# Discarding outputs still occupy storage. The size of a spooled input is unknown until its output is kept.
ADD_COUNTS: Final = """
INSERT INTO storage_use (bucket, owner, objects, bytes, rank)
SELECT bucket, owner, objects, bytes, row_number() OVER (PARTITION BY bucket ORDER BY bytes DESC, owner)
  FROM (SELECT 'public' AS bucket, j.owner, count(o.key) + count(o.thumb_key) AS objects,
               sum(o.bytes + coalesce(o.thumb_bytes, 0)) AS bytes
          FROM outputs o JOIN jobs j ON j.id = o.job_id WHERE o.key IS NOT NULL GROUP BY j.owner
        UNION ALL
        SELECT 'private', owner, count(*), sum(bytes)
          FROM (SELECT j.owner, coalesce(o.bytes, 0) AS bytes
                  FROM outputs o JOIN jobs j ON j.id = o.job_id
                 WHERE o.source_kind = 'object' AND o.source IS NOT NULL
                UNION ALL
                SELECT j.owner, o.quarantine_bytes
                  FROM outputs o JOIN jobs j ON j.id = o.job_id WHERE o.quarantine_key IS NOT NULL
                UNION ALL
                SELECT owner, bytes FROM uploads WHERE deleted_at IS NULL) inputs
         GROUP BY owner) used
"""

ADD_OTHERS: Final = """
INSERT INTO storage_use (bucket, owner, objects, bytes, rank)
SELECT bucket, '', sum(objects), sum(bytes), 0 FROM storage_use WHERE rank > %(max_owners)s GROUP BY bucket
"""


def recompute_usage(conn: Connection) -> None:
    """Recount the storage used, in one pass over outputs and uploads: minutes at most."""
    conn.execute(LONG_TIMEOUT)
    conn.execute(LOCK_TABLE)
    conn.execute(DELETE_ALL)
    conn.execute(ADD_COUNTS)
    conn.execute(ADD_OTHERS, {"max_owners": MAX_OWNERS})


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
