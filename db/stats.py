"""
The state of everything, counted for `/metrics`: live work through partial indexes, ended work of the last 24 hours.

A scrape costs what is live, not what was ever done.
"""

from dataclasses import dataclass
from typing import Final

from db.connect import Connection, many
from moorage.metrics import Gauge

SNAPSHOT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '5s'"

DELIVERIES: Final = """
SELECT state, provider, count(*) AS value
  FROM (SELECT state, provider FROM deliveries WHERE state IN ('new', 'unmatched') AND lease_token IS NULL
        UNION ALL
        SELECT state, provider FROM deliveries WHERE lease_token IS NOT NULL) live
 GROUP BY state, provider
"""

JOBS: Final = """
SELECT j.state, coalesce(p.provider, '') AS provider, count(*) AS value
  FROM jobs j
  LEFT JOIN LATERAL (SELECT provider FROM predictions WHERE job_id = j.id ORDER BY seq DESC LIMIT 1) p ON true
 WHERE j.state IN ('open', 'keeping')
 GROUP BY j.state, coalesce(p.provider, '')
"""

PREDICTIONS: Final = """
SELECT state, provider, count(*) AS value
  FROM (SELECT state, provider FROM predictions
         WHERE state IN ('planned', 'submitting', 'running', 'abandoned') AND lease_token IS NULL
        UNION ALL
        SELECT state, provider FROM predictions WHERE lease_token IS NOT NULL) live
 GROUP BY state, provider
"""

OUTPUTS: Final = """
SELECT o.state, p.provider, count(*) AS value
  FROM outputs o
  JOIN predictions p ON p.id = o.prediction_id
 WHERE o.state IN ('waiting', 'discarding')
 GROUP BY o.state, p.provider
"""

LEASES: Final = """
SELECT 'deliveries' AS "table", count(*) AS value FROM deliveries WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'predictions', count(*) FROM predictions WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'outputs', count(*) FROM outputs WHERE lease_token IS NOT NULL
"""

OLDEST_DUE: Final = """
SELECT "table", coalesce(greatest(extract(epoch FROM moment() - min(run_at)), 0), 0) AS value
  FROM (SELECT 'deliveries' AS "table", min(run_at) AS run_at
          FROM deliveries WHERE state IN ('new', 'unmatched') AND lease_token IS NULL
        UNION ALL
        SELECT 'jobs', min(run_at) FROM jobs WHERE state IN ('open', 'keeping')
        UNION ALL
        SELECT 'predictions', min(run_at) FROM predictions
         WHERE state IN ('planned', 'submitting', 'running', 'abandoned') AND lease_token IS NULL
        UNION ALL
        SELECT 'outputs', min(run_at) FROM outputs WHERE state = 'waiting' AND lease_token IS NULL
        UNION ALL
        SELECT 'outputs', min(run_at) FROM outputs WHERE state = 'discarding' AND lease_token IS NULL) due
 GROUP BY "table"
"""

SOONEST_EXPIRY: Final = """
SELECT extract(epoch FROM min(expires_at) - moment()) AS value
  FROM outputs
 WHERE state IN ('waiting', 'discarding') AND state = 'waiting'  -- the first condition is the index's
HAVING min(expires_at) IS NOT NULL
"""

DEAD_LETTERS: Final = """
SELECT coalesce(provider, '') AS provider, step, category, count(*) AS value
  FROM dead_letters
 WHERE state = 'open'
 GROUP BY coalesce(provider, ''), step, category
"""

JOBS_ENDED: Final = """
SELECT state, count(*) AS value
  FROM jobs
 WHERE settled_at IS NOT NULL AND settled_at > moment() - interval '24 hours'
 GROUP BY state
"""

OUTPUTS_ENDED: Final = """
SELECT state, count(*) AS value
  FROM outputs
 WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '24 hours'
 GROUP BY state
"""

# Only the last hundred slots of a sweep are kept.
LAST_TICK: Final = "SELECT sweep, extract(epoch FROM max(started_at)) AS value FROM ticks GROUP BY sweep"

# Counted by a sweep: the 100 owners that use most of each bucket, and the others together.
STORAGE_BYTES: Final = """
SELECT CASE rank WHEN 0 THEN '(others)' ELSE owner END AS owner, bucket, bytes AS value
  FROM storage_use WHERE rank <= 100
"""

STORAGE_OBJECTS: Final = """
SELECT CASE rank WHEN 0 THEN '(others)' ELSE owner END AS owner, bucket, objects AS value
  FROM storage_use WHERE rank <= 100
"""


@dataclass(frozen=True, slots=True)
class Stat:
    """A gauge and the statement that counts it: a column a label, and `value`."""

    name: str
    help: str
    labels: tuple[str, ...]
    sql: str


STATS: Final = (
    Stat("moorage_deliveries", "Live deliveries.", ("state", "provider"), DELIVERIES),
    Stat("moorage_jobs", "Live jobs, by the provider of their latest prediction.", ("state", "provider"), JOBS),
    Stat("moorage_predictions", "Live predictions.", ("state", "provider"), PREDICTIONS),
    Stat("moorage_outputs", "Live outputs.", ("state", "provider"), OUTPUTS),
    Stat("moorage_leases", "Rows a worker holds.", ("table",), LEASES),
    Stat("moorage_oldest_due_seconds", "How long the oldest due row has waited.", ("table",), OLDEST_DUE),
    Stat("moorage_soonest_expiry_seconds", "Time until the first waiting output's URL dies.", (), SOONEST_EXPIRY),
    Stat(
        "moorage_dead_letters_open",
        "Dead letters that wait for a person.",
        ("provider", "step", "category"),
        DEAD_LETTERS,
    ),
    Stat("moorage_jobs_ended_24h", "Jobs settled in the last 24 hours.", ("state",), JOBS_ENDED),
    Stat("moorage_outputs_ended_24h", "Outputs ended in the last 24 hours.", ("state",), OUTPUTS_ENDED),
    Stat("moorage_storage_bytes", "Bytes stored, as last counted.", ("owner", "bucket"), STORAGE_BYTES),
    Stat("moorage_storage_objects", "Objects stored, as last counted.", ("owner", "bucket"), STORAGE_OBJECTS),
    Stat("moorage_sweep_last_tick_timestamp_seconds", "When each sweep last started.", ("sweep",), LAST_TICK),
)


def read(conn: Connection) -> list[Gauge]:
    """
    Count everything, in one snapshot and one short transaction that only reads.

    Raises:
        psycopg.Error: PostgreSQL went away, or a count took longer than a statement may.
    """
    with conn.transaction():
        conn.execute(SNAPSHOT)
        return [_gauge(conn, stat) for stat in STATS]


def _gauge(conn: Connection, stat: Stat) -> Gauge:
    series = tuple(
        (tuple(str(row[label]) for label in stat.labels), float(row["value"])) for row in many(conn, stat.sql)
    )
    return Gauge(stat.name, stat.help, stat.labels, series)
