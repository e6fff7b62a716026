"""Queries of `moorage status`: live work, read through partial indexes of live rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg.errors import LockNotAvailable, QueryCanceled

from db import breakers, lock_holders, pauses, submission_turns, ticks, usage
from db.connection import Connection, Row, current_time, fetch_all
from db.leases import JOB_ID, SUBJECT
from db.reports import metrics

LAST_WEBHOOKS: Final = """
SELECT p.provider, d.received_at FROM unnest(%(providers)s::text[]) AS p (provider)
  LEFT JOIN LATERAL (SELECT received_at FROM deliveries WHERE provider = p.provider
                      ORDER BY received_at DESC LIMIT 1) d ON true
 ORDER BY p.provider
"""

IN_FLIGHT: Final = f"""
SELECT provider, count(*) AS value FROM predictions WHERE {submission_turns.IN_FLIGHT} GROUP BY provider
"""

# The time of a claim is not recorded, only the end of the lease, from which the last renewal follows.
HELD: Final = {
    table: f"""
SELECT '{subject}' AS subject, id, {JOB_ID[table]} AS job_id, leased_by, attempt, leased_until,
       leased_until < moment() AS is_over
  FROM {table} WHERE lease_token IS NOT NULL ORDER BY leased_by, leased_until LIMIT %(limit)s
"""
    for table, subject in SUBJECT.items()
}

# Without the provider, whose table may be locked.
JOBS: Final = "SELECT state, count(*) AS value FROM jobs WHERE state IN ('open', 'keeping') GROUP BY state"
OUTPUTS: Final = "SELECT state, count(*) AS value FROM outputs WHERE state IN ('waiting', 'discarding') GROUP BY state"

# After two failed attempts one more is likely to fail. Failed polls, and submissions that may have arrived, cost no
# attempt: one of them alone is no problem yet.
_LIVE_PREDICTION: Final = "state IN ('planned', 'submitting', 'running', 'abandoned') AND lease_token IS NULL"
_FAILS_AT_PROVIDER: Final = "polls >= 1 AND (state = 'running' OR state = 'submitting' AND submit_uncertain)"
FAILING: Final = f"""
SELECT subject, provider, count(*) AS value, (array_agg(reason ORDER BY run_at DESC))[1] AS example
  FROM (SELECT 'prediction' AS subject, provider, reason, run_at, attempt FROM predictions
         WHERE {_LIVE_PREDICTION} AND (attempt >= 2 OR {_FAILS_AT_PROVIDER})
        UNION ALL
        SELECT 'file', p.provider, o.reason, o.run_at, o.attempt
          FROM outputs o JOIN predictions p ON p.id = o.prediction_id
         WHERE o.state = 'waiting' AND o.lease_token IS NULL AND o.attempt >= 2
        UNION ALL SELECT 'notification', '', reason, run_at, attempt FROM notifications
         WHERE state = 'waiting' AND lease_token IS NULL AND attempt >= 2) failing
 WHERE reason IS NOT NULL GROUP BY subject, provider HAVING count(*) > 1 OR max(attempt) >= 2 ORDER BY subject, provider
"""

# An acknowledged one is no problem any more.
DEAD_LETTERS: Final = """
SELECT coalesce(provider, '') AS provider, step, category, count(*) AS value,
       count(*) FILTER (WHERE acknowledged_at IS NULL) AS unacknowledged
  FROM dead_letters WHERE state = 'open' GROUP BY coalesce(provider, ''), step, category
"""

# Until one is accepted again, or ten minutes have passed.
REFUSED_WEBHOOKS: Final = """
SELECT provider, value, reason FROM webhook_refusals r
 WHERE last_at > moment() - interval '10 min'
   AND NOT EXISTS (SELECT FROM deliveries d WHERE d.provider = r.provider AND d.received_at > r.last_at)
 ORDER BY provider
"""

LIMITS: Final = "SET LOCAL lock_timeout = '150ms'; SET LOCAL statement_timeout = '2s'"


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of all live work. A part that another transaction has locked is empty, and named in `locked`."""

    read_at: datetime
    last_webhooks: dict[str, datetime | None]
    deliveries: list[Row]  # state, provider, value
    jobs: list[Row]  # state, value
    predictions: list[Row]  # state, provider, value
    in_flight: dict[str, int]  # submissions by provider
    outputs: list[Row]  # state, value
    notifications: list[Row]  # state, value: waiting, or ended in the last 24 hours
    oldest_due_seconds: dict[str, float]  # by table
    soonest_expiry_seconds: float | None
    keep_stalled_seconds: float | None
    storage_failing_seconds: float | None
    webhooks_refused: list[Row]  # provider, value, reason
    failing: list[Row]  # subject, provider, value, example: rows that failed at least twice
    ended: list[Row]  # predictions of the last hour: provider, state, ended_by, value
    leases: list[Row]
    ticks: list[Row]
    dead_letters: list[Row]  # provider, step, category, value, unacknowledged
    pauses: list[Row]  # see pauses.list_pauses
    breakers: list[Row]  # see breakers.list_open
    storage_use: list[Row]  # bucket, owner, objects, bytes, computed_at
    lock_holders: list[Row]  # see lock_holders.list_holders
    locked: list[str]


class PartReader:
    """Reads the parts of an overview, each in a savepoint, so that a locked table hides only what it contains."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.locked: list[str] = []

    def fetch(self, part: str, sql: str, args: Mapping[str, object] | None = None) -> list[Row]:
        return self.read(part, lambda conn: fetch_all(conn, sql, args))

    def fetch_value(self, part: str, sql: str) -> float | None:
        rows = self.fetch(part, sql)
        return float(rows[0]["value"]) if rows else None

    def read(self, part: str, query: Callable[[Connection], list[Row]]) -> list[Row]:
        try:
            with self._conn.transaction():
                return query(self._conn)
        except (LockNotAvailable, QueryCanceled):
            self.locked.append(part)
            return []


def read_overview(conn: Connection, providers: Sequence[str], *, held_limit: int = 200) -> Overview:
    """Read everything in the caller's transaction; waits only briefly for locks and for each statement."""
    conn.execute(LIMITS)
    parts = PartReader(conn)
    webhooks = parts.fetch("last webhooks", LAST_WEBHOOKS, {"providers": list(providers)})
    due = [
        row for table, sql in metrics.OLDEST_DUE_BY_TABLE.items() for row in parts.fetch(f"oldest due: {table}", sql)
    ]
    held = [row for table, sql in HELD.items() for row in parts.fetch(f"leases: {table}", sql, {"limit": held_limit})]
    return Overview(
        read_at=current_time(conn),
        last_webhooks=dict.fromkeys(providers) | {row["provider"]: row["received_at"] for row in webhooks},
        deliveries=parts.fetch("deliveries", metrics.DELIVERIES),
        jobs=parts.fetch("jobs", JOBS),
        predictions=parts.fetch("predictions", metrics.PREDICTIONS),
        in_flight={row["provider"]: int(row["value"]) for row in parts.fetch("in flight", IN_FLIGHT)},
        outputs=parts.fetch("outputs", OUTPUTS),
        notifications=parts.fetch("notifications", metrics.NOTIFICATIONS),
        oldest_due_seconds={row["table"]: float(row["value"]) for row in due},
        soonest_expiry_seconds=parts.fetch_value("soonest expiry", metrics.SOONEST_EXPIRY),
        keep_stalled_seconds=parts.fetch_value("files kept", metrics.KEEP_STALLED),
        storage_failing_seconds=parts.fetch_value("files kept", metrics.STORAGE_FAILING),
        webhooks_refused=parts.fetch("refused webhooks", REFUSED_WEBHOOKS),
        failing=parts.fetch("failing", FAILING),
        ended=parts.fetch("ended predictions", metrics.PREDICTIONS_ENDED),
        leases=sorted(held, key=lambda row: (row["leased_by"], row["leased_until"]))[:held_limit],
        ticks=parts.read("sweeps", ticks.list_latest),
        dead_letters=parts.fetch("dead letters", DEAD_LETTERS),
        pauses=parts.read("pauses", pauses.list_pauses),
        breakers=parts.read("breakers", breakers.list_open),
        storage_use=parts.read("storage use", usage.list_largest),
        lock_holders=parts.read("lock holders", lock_holders.list_holders),
        locked=parts.locked,
    )
