"""
Gauges for `/metrics`: live work, counted through partial indexes, and recently ended work.

The cost of a scrape depends on the live rows, not on all rows.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import psycopg
from prometheus_client.core import GaugeMetricFamily, Metric
from psycopg.errors import QueryCanceled

from db import ticks
from db.breakers import POLL_ALLOWS, build_oldest_due
from db.connection import Connection
from db.ended_counts import build_ended_select
from db.leases import SUBJECT, UNPAUSED, WAITING
from db.submission_turns import WAITS_FOR_NOTHING
from db.work_totals import read_totals
from moorage import logs, metrics

log = logs.get_logger(__name__)

SCRAPE_SECONDS: Final = 6.0  # Prometheus waits for ten
SNAPSHOT: Final = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;"
    " SET LOCAL statement_timeout = '2s'; SET LOCAL lock_timeout = '150ms'"
)


def _select_live(table: str, columns: str) -> str:
    return f"""(SELECT {columns} FROM {table} WHERE {WAITING[table]}
        UNION ALL SELECT {columns} FROM {table} WHERE lease_token IS NOT NULL) live"""


def _count_live(table: str, columns: str) -> str:
    return f"SELECT {columns}, count(*) AS value FROM {_select_live(table, columns)} GROUP BY {columns}"


DELIVERIES: Final = _count_live("deliveries", "state, provider")
PREDICTIONS: Final = _count_live("predictions", "state, provider")
NOTIFICATIONS: Final = f"""{_count_live("notifications", "state")}
 UNION ALL ({build_ended_select("notifications", "24 hours", "state")})"""

JOBS: Final = """
SELECT j.state, coalesce(p.provider, '') AS provider, count(*) AS value FROM jobs j
  LEFT JOIN LATERAL (SELECT provider FROM predictions WHERE job_id = j.id ORDER BY seq DESC LIMIT 1) p ON true
 WHERE j.state IN ('open', 'keeping') GROUP BY j.state, coalesce(p.provider, '')
"""

OUTPUTS: Final = """
SELECT o.state, p.provider, count(*) AS value FROM outputs o JOIN predictions p ON p.id = o.prediction_id
 WHERE o.state IN ('waiting', 'discarding')
 GROUP BY o.state, p.provider
"""

OLDEST_RUNNING: Final = f"""
SELECT provider, extract(epoch FROM moment() - min(coalesce(submitted_at, created_at))) AS value
  FROM {_select_live("predictions", "provider, state, submitted_at, created_at")}
 WHERE state = 'running' GROUP BY provider
"""

# After four attempts, which a restart of the application does not take.
NOTIFICATION_FAILING: Final = f"""
SELECT extract(epoch FROM moment() - min(created_at)) AS value
  FROM {_select_live("notifications", "created_at, attempt")} WHERE attempt >= 4 HAVING min(created_at) IS NOT NULL
"""

LEASES: Final = " UNION ALL ".join(
    f"""SELECT '{table}' AS "table", count(*) AS value FROM {table} WHERE lease_token IS NOT NULL"""
    for table in SUBJECT
)

# Not overdue: paused rows, see `moorage_paused_seconds`, and what waits for a circuit breaker. Leased rows are due when
# their lease has ended.
_DUE: Final = {
    "deliveries": ("state IN ('new', 'unmatched') AND lease_token IS NULL",),
    "jobs": ("state IN ('open', 'keeping')",),
    "predictions": (
        f"""state IN ('submitting', 'running', 'abandoned') AND lease_token IS NULL AND {UNPAUSED["predictions"]}
            AND {POLL_ALLOWS}""",
    ),
    "outputs": ("state = 'discarding' AND lease_token IS NULL",),
    "notifications": ("state = 'waiting' AND lease_token IS NULL",),
}
# A planned prediction that waits for a place is not due. A place is free at the earliest since the last one was taken.
_BY_PLACE: Final = {
    "outputs": f"SELECT 'outputs', run_at FROM {build_oldest_due(UNPAUSED['outputs'])} AS waiting",
    "predictions": f"""SELECT 'predictions', greatest(min(run_at), max(moved_at))
  FROM predictions LEFT JOIN cursors ON sweep = 'submit ' || provider
 WHERE state = 'planned' AND lease_token IS NULL AND {UNPAUSED["predictions"]} AND {WAITS_FOR_NOTHING}
 GROUP BY provider""",
}


def _build_oldest_due(tables: Iterable[str]) -> str:
    parts = [
        f"""SELECT '{table}' AS "table", min(run_at) AS run_at FROM {table} WHERE {condition}"""
        for table in tables
        for condition in _DUE[table]
    ] + [_BY_PLACE[table] for table in tables if table in _BY_PLACE]
    parts += [f"SELECT '{t}', min(leased_until) FROM {t} WHERE lease_token IS NOT NULL" for t in tables if t in SUBJECT]
    return f"""
SELECT "table", coalesce(greatest(extract(epoch FROM moment() - min(run_at)), 0), 0) AS value
  FROM ({" UNION ALL ".join(parts)}) due
 GROUP BY "table"
"""


OLDEST_DUE: Final = _build_oldest_due(_DUE)
OLDEST_DUE_BY_TABLE: Final = {table: _build_oldest_due([table]) for table in _DUE}

# Bytes in quarantine do not expire.
SOONEST_EXPIRY: Final = """
SELECT extract(epoch FROM min(expires_at) - moment()) AS value FROM outputs
 WHERE state IN ('waiting', 'discarding') AND state = 'waiting' AND quarantine_key IS NULL  -- the first is the index's
HAVING min(expires_at) IS NOT NULL
"""

# An event: the row of a kept file changes when its render is deleted.
_LAST_KEPT: Final = "(SELECT max(at) FROM events WHERE subject = 'output' AND to_state = 'kept')"

# How long files have waited with none kept. The oldest due row does not show it: each attempt moves run_at.
KEEP_STALLED: Final = f"""
SELECT extract(epoch FROM moment() - greatest(min(created_at), {_LAST_KEPT})) AS value FROM outputs
 WHERE state IN ('waiting', 'discarding') AND state = 'waiting' AND {UNPAUSED["outputs"]}
HAVING min(created_at) IS NOT NULL
"""

# Since the first failure after the last kept file, while files wait.
STORAGE_FAILING: Final = f"""
SELECT extract(epoch FROM moment() - min(at)) AS value FROM events
 WHERE at > greatest(moment() - interval '1 hour', {_LAST_KEPT}) AND kind = 'storage_failed'
   AND EXISTS (SELECT FROM outputs WHERE state IN ('waiting', 'discarding'))
HAVING min(at) IS NOT NULL
"""

# Counted by the drain sweep. An older count says nothing: then no worker of `quick` runs it, or no broker answers.
QUEUE_CONSUMERS: Final = """
SELECT c.queue, c.value::integer AS value
  FROM (SELECT result FROM ticks
         WHERE sweep = 'drain' AND result ? 'consumers' AND started_at BETWEEN moment() - interval '2 min' AND moment()
         ORDER BY started_at DESC LIMIT 1) t
 CROSS JOIN LATERAL jsonb_each_text(t.result -> 'consumers') AS c (queue, value)
"""

DEAD_LETTERS: Final = """
SELECT coalesce(provider, '') AS provider, step, category, count(*) AS value
  FROM dead_letters WHERE state = 'open' GROUP BY coalesce(provider, ''), step, category
"""


JOBS_ENDED: Final = build_ended_select("jobs", "24 hours", "state")
OUTPUTS_ENDED: Final = build_ended_select("outputs", "24 hours", "state")

# One hour only, so that an alert ends soon after its cause.
PREDICTIONS_ENDED: Final = build_ended_select("predictions", "1 hour", "provider, state, detail AS ended_by")
JOBS_SETTLED: Final = build_ended_select("jobs", "1 hour", "state, detail AS answer")

# Submissions refused for missing credit or an invalid token: only the account owner can resolve this.
BILLING_REFUSED: Final = build_ended_select("predictions", "1 hour", "provider", "category = 'BILLING_FAILED'")

# All providers with deliveries, by a loose scan of the index.
_SENDERS: Final = """sender (provider) AS (
    (SELECT provider FROM deliveries ORDER BY provider LIMIT 1)
    UNION ALL
    SELECT (SELECT d.provider FROM deliveries d WHERE d.provider > s.provider ORDER BY d.provider LIMIT 1)
      FROM sender s WHERE s.provider IS NOT NULL
)"""

LAST_WEBHOOK: Final = f"""
WITH RECURSIVE {_SENDERS}
SELECT s.provider, extract(epoch FROM moment() - d.received_at) AS value FROM sender s
  JOIN LATERAL (SELECT received_at FROM deliveries WHERE provider = s.provider
                 ORDER BY received_at DESC LIMIT 1) d ON true
"""

# Mean of the last 1,000 intervals within 7 days; requires 20 deliveries.
WEBHOOK_INTERVAL: Final = f"""
WITH RECURSIVE {_SENDERS}
SELECT s.provider, d.value FROM sender s
  JOIN LATERAL (SELECT count(*) AS count,
                       extract(epoch FROM max(received_at) - min(received_at)) / greatest(count(*) - 1, 1) AS value
                  FROM (SELECT received_at FROM deliveries
                         WHERE provider = s.provider AND received_at > moment() - interval '7 days'
                         ORDER BY received_at DESC LIMIT 1000) latest) d ON d.count >= 20
"""

# Until one is accepted again, or ten minutes have passed.
REFUSED_WEBHOOKS: Final = """
SELECT provider, value, reason FROM webhook_refusals r
 WHERE last_at > moment() - interval '10 min'
   AND NOT EXISTS (SELECT FROM deliveries d WHERE d.provider = r.provider AND d.received_at > r.last_at)
 ORDER BY provider
"""
WEBHOOKS_REFUSED: Final = f"SELECT provider, value FROM ({REFUSED_WEBHOOKS}) refused"

PAUSED: Final = "SELECT target, extract(epoch FROM moment() - paused_at) AS value FROM pauses"

# The last hundred slots, or three ticks, are kept. One in the future was claimed before the clock was set back.
_TICKS: Final = f"FROM ({ticks.LATEST}) t"
LAST_TICK: Final = f"SELECT sweep, extract(epoch FROM moment() - started_at) AS value {_TICKS}"
# From the second start, as a daily sweep that failed once starts again a day later; of none that is scheduled no more.
UNFINISHED: Final = f"""SELECT sweep, coalesce(extract(epoch FROM moment() - (
        SELECT min(started_at) FROM ticks u WHERE u.sweep = t.sweep AND u.started_at > unfinished_since
           AND u.started_at <= moment() AND t.started_at > moment() - interval '8 days')), 0) AS value {_TICKS}"""

# Counted by a sweep: the 100 largest owners of each bucket, and the sum of the others.
_OWNER: Final = "CASE rank WHEN 0 THEN '(others)' ELSE owner END AS owner"
STORAGE_BYTES: Final = f"SELECT {_OWNER}, bucket, bytes AS value FROM storage_use WHERE rank <= 100"
STORAGE_OBJECTS: Final = f"SELECT {_OWNER}, bucket, objects AS value FROM storage_use WHERE rank <= 100"
STORAGE_COUNTED: Final = """
SELECT bucket, extract(epoch FROM moment() - max(computed_at)) AS value FROM storage_use
 WHERE rank BETWEEN 1 AND 100 GROUP BY bucket
"""

# name, help, statement: its columns are the labels of the gauge, and `value`
GAUGE_QUERIES: Final = (
    ("moorage_sweep_last_tick_seconds", "Seconds since each sweep last started.", LAST_TICK),
    ("moorage_sweep_unfinished_seconds", "Seconds since a second start that did not finish.", UNFINISHED),
    ("moorage_deliveries", "Live deliveries.", DELIVERIES),
    ("moorage_jobs", "Live jobs, by the provider of their latest prediction.", JOBS),
    ("moorage_predictions", "Live predictions.", PREDICTIONS),
    ("moorage_outputs", "Live outputs.", OUTPUTS),
    ("moorage_notifications", "Notifications waiting, or ended in the last 24 hours.", NOTIFICATIONS),
    ("moorage_oldest_running_seconds", "How long the oldest running prediction has run.", OLDEST_RUNNING),
    ("moorage_notification_failing_seconds", "Age of the oldest notification that failed.", NOTIFICATION_FAILING),
    ("moorage_leases", "Rows leased by workers.", LEASES),
    ("moorage_oldest_due_seconds", "How long the oldest due row has waited.", OLDEST_DUE),
    ("moorage_soonest_expiry_seconds", "Time until the first URL of a waiting output expires.", SOONEST_EXPIRY),
    ("moorage_keep_stalled_seconds", "How long files have waited with none kept.", KEEP_STALLED),
    ("moorage_storage_failing_seconds", "Time since storage first failed with no file kept after it.", STORAGE_FAILING),
    ("moorage_queue_consumers", "Workers that consume a queue, as last counted.", QUEUE_CONSUMERS),
    ("moorage_dead_letters_open", "Open dead letters.", DEAD_LETTERS),
    ("moorage_jobs_ended_24h", "Jobs settled in the last 24 hours.", JOBS_ENDED),
    ("moorage_outputs_ended_24h", "Outputs ended in the last 24 hours.", OUTPUTS_ENDED),
    ("moorage_predictions_ended_1h", "Predictions ended in the last hour, by what ended them.", PREDICTIONS_ENDED),
    ("moorage_jobs_settled_1h", "Jobs settled in the last hour, by the entry that answered.", JOBS_SETTLED),
    ("moorage_billing_refused_1h", "Predictions refused for the account in the last hour.", BILLING_REFUSED),
    ("moorage_last_webhook_seconds", "Seconds since the last webhook.", LAST_WEBHOOK),
    ("moorage_webhook_interval_seconds", "Mean time between two webhooks.", WEBHOOK_INTERVAL),
    ("moorage_webhooks_refused_10m", "Webhooks refused, and none accepted since.", WEBHOOKS_REFUSED),
    ("moorage_paused_seconds", "Seconds since a provider, or keep, was paused.", PAUSED),
    ("moorage_storage_bytes", "Bytes stored, as last counted.", STORAGE_BYTES),
    ("moorage_storage_objects", "Objects stored, as last counted.", STORAGE_OBJECTS),
    ("moorage_storage_counted_seconds", "Seconds since what is stored was last counted.", STORAGE_COUNTED),
)


def collect_gauges(conn: Connection) -> list[Metric]:
    """
    Read all gauges, and what workers have counted, in one read-only snapshot.

    One that fails is named in `moorage_gauge_failed`; the others remain. It fails if its table is locked, its statement
    takes more than 2 s, or those before took more than SCRAPE_SECONDS.
    """
    gauges, failed, end = list[Metric](), set[str](), time.monotonic() + SCRAPE_SECONDS
    reads: dict[str, Callable[[], Iterable[Metric]]] = {
        **{query[0]: partial(_read_gauge, conn, *query) for query in GAUGE_QUERIES},
        "work_totals": lambda: metrics.build_work_families(read_totals(conn)),
    }
    with conn.transaction():
        conn.execute(SNAPSHOT)
        for name, read in reads.items():
            try:
                if time.monotonic() >= end:
                    raise QueryCanceled("the scrape takes too long")
                with conn.transaction():
                    gauges += read()
            except psycopg.Error as error:
                if conn.closed:
                    raise
                log.warning("metrics.gauge_failed", gauge=name, error=str(error))
                failed.add(name)
    failures = GaugeMetricFamily("moorage_gauge_failed", "1 for a gauge that could not be read.", labels=["gauge"])
    for name in reads:
        failures.add_metric([name], name in failed)
    return [*gauges, failures]


def _read_gauge(conn: Connection, name: str, help_text: str, sql: str) -> list[Metric]:
    cursor = conn.execute(sql)
    labels = [column.name for column in cursor.description or () if column.name != "value"]
    gauge = GaugeMetricFamily(name, help_text, labels=labels)
    for row in cursor:
        gauge.add_metric([str(row[label]) for label in labels], float(row["value"]))
    return [gauge]
