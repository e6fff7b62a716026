"""
The state of everything, counted for `/metrics`: live work through partial indexes, ended work of the last 24 hours.

A scrape costs what is live, not what was ever done.
"""

from dataclasses import dataclass
from typing import Final

from db.connection import Connection, fetch_all
from db.leases import UNPAUSED
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

NOTICES: Final = """
SELECT state, count(*) AS value
  FROM (SELECT state FROM notices WHERE state = 'waiting' AND lease_token IS NULL
        UNION ALL
        SELECT state FROM notices WHERE lease_token IS NOT NULL
        UNION ALL
        SELECT state FROM notices WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '24 hours') told
 GROUP BY state
"""

LEASES: Final = """
SELECT 'deliveries' AS "table", count(*) AS value FROM deliveries WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'predictions', count(*) FROM predictions WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'outputs', count(*) FROM outputs WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'notices', count(*) FROM notices WHERE lease_token IS NOT NULL
"""

# What is paused is not overdue: `moorage_paused_seconds` tells of it.
OLDEST_DUE: Final = f"""
SELECT "table", coalesce(greatest(extract(epoch FROM moment() - min(run_at)), 0), 0) AS value
  FROM (SELECT 'deliveries' AS "table", min(run_at) AS run_at
          FROM deliveries WHERE state IN ('new', 'unmatched') AND lease_token IS NULL
        UNION ALL
        SELECT 'jobs', min(run_at) FROM jobs WHERE state IN ('open', 'keeping')
        UNION ALL
        SELECT 'predictions', min(run_at) FROM predictions
         WHERE state IN ('planned', 'submitting', 'running', 'abandoned') AND lease_token IS NULL
           AND {UNPAUSED["predictions"]}
        UNION ALL
        SELECT 'outputs', min(run_at) FROM outputs
         WHERE state = 'waiting' AND lease_token IS NULL AND {UNPAUSED["outputs"]}
        UNION ALL
        SELECT 'outputs', min(run_at) FROM outputs WHERE state = 'discarding' AND lease_token IS NULL
        UNION ALL
        SELECT 'notices', min(run_at) FROM notices WHERE state = 'waiting' AND lease_token IS NULL) due
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

# The last hour alone, so that an alert ends when its cause does. A lost webhook is one that a poll had to stand in for.
PREDICTIONS_ENDED: Final = """
SELECT provider, state, coalesce(ended_by, '') AS ended_by, count(*) AS value
  FROM predictions
 WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '1 hour'
 GROUP BY provider, state, coalesce(ended_by, '')
"""

# Whose files a job got: those of the first entry of its chain, of a later one, a placeholder, none.
JOBS_SETTLED: Final = """
SELECT j.state, CASE WHEN p.id IS NULL OR j.state IN ('failed', 'cancelled') THEN 'none'
                     WHEN p.provider = 'placeholder' THEN 'placeholder'
                     WHEN coalesce(p.entry, p.seq) = 0 THEN 'first' ELSE 'fallback' END AS answer, count(*) AS value
  FROM jobs j
  LEFT JOIN predictions p ON p.id = j.chosen_id
 WHERE j.settled_at IS NOT NULL AND j.settled_at > moment() - interval '1 hour'
 GROUP BY 1, 2
"""

# A refusal that only a person with a credit card can mend.
BILLING_REFUSED: Final = """
SELECT provider, count(*) AS value
  FROM predictions
 WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '1 hour' AND category = 'BILLING_FAILED'
 GROUP BY provider
"""

# Each provider that ever sent one, by jumps along the index of deliveries.
_SENDERS: Final = """sender (provider) AS (
    (SELECT provider FROM deliveries ORDER BY provider LIMIT 1)
    UNION ALL
    SELECT (SELECT d.provider FROM deliveries d WHERE d.provider > s.provider ORDER BY d.provider LIMIT 1)
      FROM sender s WHERE s.provider IS NOT NULL
)"""

LAST_WEBHOOK: Final = f"""
WITH RECURSIVE {_SENDERS}
SELECT s.provider, extract(epoch FROM moment() - d.received_at) AS value
  FROM sender s
  JOIN LATERAL (SELECT received_at FROM deliveries WHERE provider = s.provider
                 ORDER BY received_at DESC LIMIT 1) d ON true
"""

# The mean of the last thousand, of 7 days at most; below twenty nothing is usual yet.
WEBHOOK_INTERVAL: Final = f"""
WITH RECURSIVE {_SENDERS}
SELECT s.provider, d.value
  FROM sender s
  JOIN LATERAL (SELECT count(*) AS count,
                       extract(epoch FROM max(received_at) - min(received_at)) / greatest(count(*) - 1, 1) AS value
                  FROM (SELECT received_at FROM deliveries
                         WHERE provider = s.provider AND received_at > moment() - interval '7 days'
                         ORDER BY received_at DESC LIMIT 1000) latest) d ON d.count >= 20
"""

PAUSED: Final = "SELECT target, extract(epoch FROM moment() - paused_at) AS value FROM pauses"

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
class GaugeQuery:
    """A gauge and the statement that counts it: a column a label, and `value`."""

    name: str
    help: str
    labels: tuple[str, ...]
    sql: str


GAUGE_QUERIES: Final = (
    GaugeQuery("moorage_deliveries", "Live deliveries.", ("state", "provider"), DELIVERIES),
    GaugeQuery("moorage_jobs", "Live jobs, by the provider of their latest prediction.", ("state", "provider"), JOBS),
    GaugeQuery("moorage_predictions", "Live predictions.", ("state", "provider"), PREDICTIONS),
    GaugeQuery("moorage_outputs", "Live outputs.", ("state", "provider"), OUTPUTS),
    GaugeQuery("moorage_notices", "Notices that wait, and those that ended in the last 24 hours.", ("state",), NOTICES),
    GaugeQuery("moorage_leases", "Rows a worker holds.", ("table",), LEASES),
    GaugeQuery("moorage_oldest_due_seconds", "How long the oldest due row has waited.", ("table",), OLDEST_DUE),
    GaugeQuery("moorage_soonest_expiry_seconds", "Time until the first waiting output's URL dies.", (), SOONEST_EXPIRY),
    GaugeQuery(
        "moorage_dead_letters_open",
        "Dead letters that wait for a person.",
        ("provider", "step", "category"),
        DEAD_LETTERS,
    ),
    GaugeQuery("moorage_jobs_ended_24h", "Jobs settled in the last 24 hours.", ("state",), JOBS_ENDED),
    GaugeQuery("moorage_outputs_ended_24h", "Outputs ended in the last 24 hours.", ("state",), OUTPUTS_ENDED),
    GaugeQuery(
        "moorage_predictions_ended_1h",
        "Predictions ended in the last hour, by what told of the end.",
        ("provider", "state", "ended_by"),
        PREDICTIONS_ENDED,
    ),
    GaugeQuery(
        "moorage_jobs_settled_1h",
        "Jobs settled in the last hour, by whose files they got: first, fallback, placeholder, none.",
        ("state", "answer"),
        JOBS_SETTLED,
    ),
    GaugeQuery(
        "moorage_billing_refused_1h",
        "Predictions that a provider refused in the last hour for want of money.",
        ("provider",),
        BILLING_REFUSED,
    ),
    GaugeQuery("moorage_last_webhook_seconds", "How long ago the last webhook came.", ("provider",), LAST_WEBHOOK),
    GaugeQuery("moorage_webhook_interval_seconds", "Usual time between two webhooks.", ("provider",), WEBHOOK_INTERVAL),
    GaugeQuery("moorage_paused_seconds", "How long a provider, or keep, has been paused.", ("target",), PAUSED),
    GaugeQuery("moorage_storage_bytes", "Bytes stored, as last counted.", ("owner", "bucket"), STORAGE_BYTES),
    GaugeQuery("moorage_storage_objects", "Objects stored, as last counted.", ("owner", "bucket"), STORAGE_OBJECTS),
    GaugeQuery("moorage_sweep_last_tick_timestamp_seconds", "When each sweep last started.", ("sweep",), LAST_TICK),
)


def collect_gauges(conn: Connection) -> list[Gauge]:
    """
    Count everything, in one snapshot and one short transaction that only reads.

    Raises:
        psycopg.Error: PostgreSQL went away, or a count took longer than a statement may.
    """
    with conn.transaction():
        conn.execute(SNAPSHOT)
        return [_gauge(conn, stat) for stat in GAUGE_QUERIES]


def _gauge(conn: Connection, stat: GaugeQuery) -> Gauge:
    series = tuple(
        (tuple(str(row[label]) for label in stat.labels), float(row["value"])) for row in fetch_all(conn, stat.sql)
    )
    return Gauge(stat.name, stat.help, stat.labels, series)
