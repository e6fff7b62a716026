"""Storage used: by owner and bucket, counted from the rows by a sweep and kept, so that reading it costs nothing."""

from typing import Final

from db.connection import Connection, Row, fetch_all
from db.objects import LONG_TIMEOUT

SHOWN: Final = 100  # owners of a bucket that are named; the others are one line

# Two counts at once would insert the same rows; readers are not kept waiting.
ALONE: Final = "LOCK TABLE storage_use IN SHARE ROW EXCLUSIVE MODE"

EMPTY: Final = "DELETE FROM storage_use"

# What is being discarded still lies there. Of an input file only the number is known until its output is kept.
COUNT: Final = """
INSERT INTO storage_use (bucket, owner, objects, bytes, rank)
SELECT bucket, owner, objects, bytes, row_number() OVER (PARTITION BY bucket ORDER BY bytes DESC, owner)
  FROM (SELECT 'public' AS bucket, j.owner, count(o.key) + count(o.thumb_key) AS objects,
               sum(o.bytes + coalesce(o.thumb_bytes, 0)) AS bytes
          FROM outputs o JOIN jobs j ON j.id = o.job_id
         WHERE o.key IS NOT NULL
         GROUP BY j.owner
        UNION ALL
        SELECT 'private', owner, count(*), sum(bytes)
          FROM (SELECT j.owner, coalesce(o.bytes, 0) AS bytes
                  FROM outputs o JOIN jobs j ON j.id = o.job_id
                 WHERE o.source_kind = 'object' AND o.source IS NOT NULL
                UNION ALL
                SELECT owner, bytes FROM uploads WHERE deleted_at IS NULL) inputs
         GROUP BY owner) used
"""

OTHERS: Final = """
INSERT INTO storage_use (bucket, owner, objects, bytes, rank)
SELECT bucket, '', sum(objects), sum(bytes), 0 FROM storage_use WHERE rank > %(shown)s GROUP BY bucket
"""


def recompute_usage(conn: Connection) -> None:
    """Count the storage used anew: one pass over outputs and uploads, minutes at most."""
    conn.execute(LONG_TIMEOUT)
    conn.execute(ALONE)
    conn.execute(EMPTY)
    conn.execute(COUNT)
    conn.execute(OTHERS, {"shown": SHOWN})


MOST: Final = """
SELECT bucket, CASE rank WHEN 0 THEN '(others)' ELSE owner END AS owner, objects, bytes, computed_at
  FROM storage_use WHERE rank <= %(shown)s ORDER BY bytes DESC, bucket, owner
"""


def list_largest(conn: Connection) -> list[Row]:
    """Return the 100 owners that use most of each bucket, and what all others use together."""
    return fetch_all(conn, MOST, {"shown": SHOWN})


TOTALS: Final = """
SELECT bucket, sum(objects)::bigint AS objects, sum(bytes)::bigint AS bytes, max(computed_at) AS computed_at
  FROM storage_use WHERE rank <= %(shown)s GROUP BY bucket ORDER BY bucket
"""


def list_totals(conn: Connection) -> list[Row]:
    """Return what each bucket holds, as it was last counted; nothing before the first count."""
    return fetch_all(conn, TOTALS, {"shown": SHOWN})
