"""
Gauges for `/metrics`: live work, counted through partial indexes, and recently ended work.

The cost of a scrape depends on the live rows, not on all rows.
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

NOTIFICATIONS: Final = """
SELECT state, count(*) AS value
  FROM (SELECT state FROM notifications WHERE state = 'waiting' AND lease_token IS NULL
        UNION ALL
        SELECT state FROM notifications WHERE lease_token IS NOT NULL
        UNION ALL
        SELECT state FROM notifications
         WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '24 hours') counted
 GROUP BY state
"""

LEASES: Final = """
SELECT 'deliveries' AS "table", count(*) AS value FROM deliveries WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'predictions', count(*) FROM predictions WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'outputs', count(*) FROM outputs WHERE lease_token IS NOT NULL
UNION ALL
SELECT 'notifications', count(*) FROM notifications WHERE lease_token IS NOT NULL
"""

# Paused rows are not overdue: see `moorage_paused_seconds`.
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
        SELECT 'notifications', min(run_at) FROM notifications WHERE state = 'waiting' AND lease_token IS NULL) due
 GROUP BY "table"
"""

SOONEST_EXPIRY: Final = """
SELECT extract(epoch FROM min(expires_at) - moment()) AS value
  FROM outputs
 WHERE state IN ('waiting', 'discarding') AND state = 'waiting'  -- the first condition selects the index
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

# One hour only, so that an alert ends soon after its cause. ended_by = poll indicates a missing webhook.
PREDICTIONS_ENDED: Final = """
SELECT provider, state, coalesce(ended_by, '') AS ended_by, count(*) AS value
  FROM predictions
 WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '1 hour'
 GROUP BY provider, state, coalesce(ended_by, '')
"""

# Whose files a job has: those of the first entry of its fallback chain, of a later one, a placeholder, or none.
JOBS_SETTLED: Final = """
SELECT j.state, CASE WHEN p.id IS NULL OR j.state IN ('failed', 'cancelled') THEN 'none'
                     WHEN p.provider = 'placeholder' THEN 'placeholder'
                     WHEN coalesce(p.entry, p.seq) = 0 THEN 'first' ELSE 'fallback' END AS answer, count(*) AS value
  FROM jobs j
  LEFT JOIN predictions p ON p.id = j.chosen_id
 WHERE j.settled_at IS NOT NULL AND j.settled_at > moment() - interval '1 hour'
 GROUP BY 1, 2
"""

# Submissions refused for missing credit: only the account owner can resolve this.
BILLING_REFUSED: Final = """
SELECT provider, count(*) AS value
  FROM predictions
 WHERE ended_at IS NOT NULL AND ended_at > moment() - interval '1 hour' AND category = 'BILLING_FAILED'
 GROUP BY provider
"""

# All providers with deliveries, by a loose scan of the index.
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

# Mean of the last 1,000 intervals within 7 days; requires 20 deliveries.
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

# Counted by a sweep: the 100 largest owners of each bucket, and the sum of the others.
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
    """A gauge and its statement, which returns one column a label, and `value`."""

    name: str
    help: str
    labels: tuple[str, ...]
    sql: str


GAUGE_QUERIES: Final = (
    GaugeQuery("moorage_deliveries", "Live deliveries.", ("state", "provider"), DELIVERIES),
    GaugeQuery("moorage_jobs", "Live jobs, by the provider of their latest prediction.", ("state", "provider"), JOBS),
    GaugeQuery("moorage_predictions", "Live predictions.", ("state", "provider"), PREDICTIONS),
    GaugeQuery("moorage_outputs", "Live outputs.", ("state", "provider"), OUTPUTS),
    GaugeQuery(
        "moorage_notifications", "Notifications waiting, or ended in the last 24 hours.", ("state",), NOTIFICATIONS
    ),
    GaugeQuery("moorage_leases", "Rows leased by workers.", ("table",), LEASES),
    GaugeQuery("moorage_oldest_due_seconds", "How long the oldest due row has waited.", ("table",), OLDEST_DUE),
    GaugeQuery(
        "moorage_soonest_expiry_seconds", "Time until the first URL of a waiting output expires.", (), SOONEST_EXPIRY
    ),
    GaugeQuery(
        "moorage_dead_letters_open",
        "Open dead letters.",
        ("provider", "step", "category"),
        DEAD_LETTERS,
    ),
    GaugeQuery("moorage_jobs_ended_24h", "Jobs settled in the last 24 hours.", ("state",), JOBS_ENDED),
    GaugeQuery("moorage_outputs_ended_24h", "Outputs ended in the last 24 hours.", ("state",), OUTPUTS_ENDED),
    GaugeQuery(
        "moorage_predictions_ended_1h",
        "Predictions ended in the last hour, by the source of the result.",
        ("provider", "state", "ended_by"),
        PREDICTIONS_ENDED,
    ),
    GaugeQuery(
        "moorage_jobs_settled_1h",
        "Jobs settled in the last hour, by the origin of their files: first, fallback, placeholder, none.",
        ("state", "answer"),
        JOBS_SETTLED,
    ),
    GaugeQuery(
        "moorage_billing_refused_1h",
        "Predictions refused for missing credit in the last hour.",
        ("provider",),
        BILLING_REFUSED,
    ),
    GaugeQuery("moorage_last_webhook_seconds", "Seconds since the last webhook.", ("provider",), LAST_WEBHOOK),
    GaugeQuery("moorage_webhook_interval_seconds", "Mean time between two webhooks.", ("provider",), WEBHOOK_INTERVAL),
    GaugeQuery("moorage_paused_seconds", "Seconds since a provider, or keep, was paused.", ("target",), PAUSED),
    GaugeQuery("moorage_storage_bytes", "Bytes stored, as last counted.", ("owner", "bucket"), STORAGE_BYTES),
    GaugeQuery("moorage_storage_objects", "Objects stored, as last counted.", ("owner", "bucket"), STORAGE_OBJECTS),
    GaugeQuery("moorage_sweep_last_tick_timestamp_seconds", "When each sweep last started.", ("sweep",), LAST_TICK),
)


def collect_gauges(conn: Connection) -> list[Gauge]:
    """
    Read all gauges in one read-only snapshot.

    Raises:
        psycopg.Error: PostgreSQL is unavailable, or a statement took more than 5 s.
    """
    with conn.transaction():
        conn.execute(SNAPSHOT)
        return [_gauge(conn, stat) for stat in GAUGE_QUERIES]


def _gauge(conn: Connection, stat: GaugeQuery) -> Gauge:
    series = tuple(
        (tuple(str(row[label]) for label in stat.labels), float(row["value"])) for row in fetch_all(conn, stat.sql)
    )
    return Gauge(stat.name, stat.help, stat.labels, series)
