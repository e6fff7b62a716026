"""Queries of `moorage status`: live work, read through partial indexes of live rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from psycopg.errors import LockNotAvailable, QueryCanceled

from db import breakers, lock_holders, pauses, storage_use, submission_turns, ticks
from db.connection import Connection, Row, current_time, fetch_all
from db.leases import JOB_ID, SUBJECT, WAITING
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
_FAILS_AT_PROVIDER: Final = "polls >= 1 AND (state = 'running' OR state = 'submitting' AND submit_uncertain)"
FAILING: Final = f"""
SELECT subject, provider, count(*) AS value, (array_agg(reason ORDER BY run_at DESC))[1] AS example
  FROM (SELECT 'prediction' AS subject, provider, reason, run_at, attempt FROM predictions
         WHERE {WAITING["predictions"]} AND (attempt >= 2 OR {_FAILS_AT_PROVIDER})
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

ERASURE_OPEN: Final = """
SELECT extract(epoch FROM moment() - min(requested_at)) AS value FROM erasures WHERE owner IS NOT NULL
HAVING min(requested_at) IS NOT NULL
"""

LIMITS: Final = "SET LOCAL lock_timeout = '150ms'; SET LOCAL statement_timeout = '2s'"

# The name of a part, and its rows.
_ROWS: Final[Mapping[str, tuple[str, str | Callable[[Connection], list[Row]]]]] = {
    "deliveries": ("deliveries", metrics.DELIVERIES),  # state, provider, value
    "jobs": ("jobs", JOBS),  # state, value
    "predictions": ("predictions", metrics.PREDICTIONS),  # state, provider, value
    "outputs": ("outputs", OUTPUTS),  # state, value
    "notifications": ("notifications", metrics.NOTIFICATIONS),  # state, value: waiting, or ended in the last 24 hours
    "webhooks_refused": ("refused webhooks", metrics.REFUSED_WEBHOOKS),  # provider, value, reason
    "billing_refused": ("refused submissions", metrics.BILLING_REFUSED),  # of the last hour: provider, value
    "failing": ("failing", FAILING),  # subject, provider, value, example: rows that failed at least twice
    "ended": ("ended predictions", metrics.PREDICTIONS_ENDED),  # of the last hour: provider, state, ended_by, value
    "ticks": ("sweeps", ticks.list_latest),
    "dead_letters": ("dead letters", DEAD_LETTERS),  # provider, step, category, value, unacknowledged
    "pauses": ("pauses", pauses.list_pauses),
    "breakers": ("breakers", breakers.list_open),
    "storage_use": ("storage use", storage_use.list_largest),  # bucket, owner, objects, bytes, computed_at
    "lock_holders": ("lock holders", lock_holders.list_holders),
}
_SECONDS: Final = {
    "soonest_expiry_seconds": ("soonest expiry", metrics.SOONEST_EXPIRY),
    "keep_stalled_seconds": ("files kept", metrics.KEEP_STALLED),
    "erasure_open_seconds": ("erasures", ERASURE_OPEN),
    "storage_failing_seconds": ("files kept", metrics.STORAGE_FAILING),
}


def read_overview(conn: Connection, providers: Sequence[str], *, held_limit: int = 200) -> Row:
    """
    Return the state of all live work: what is named above (seconds may be None), `read_at`, `last_webhooks` and
    `in_flight` by provider, `oldest_due_seconds` by table, `leases`, and `locked`.

    Reads in the caller's transaction and waits only briefly for locks and for each statement. A part that another
    transaction has locked is empty, and named in `locked`.
    """
    conn.execute(LIMITS)
    locked: list[str] = []

    def fetch(part: str, query: str | Callable[[Connection], list[Row]], **args: object) -> list[Row]:
        try:
            with conn.transaction():  # a savepoint, so that a locked table hides only what it contains
                return fetch_all(conn, query, args) if isinstance(query, str) else query(conn)
        except (LockNotAvailable, QueryCanceled):
            locked.append(part)
            return []

    webhooks = fetch("last webhooks", LAST_WEBHOOKS, providers=list(providers))
    due = [row for table, sql in metrics.OLDEST_DUE_BY_TABLE.items() for row in fetch(f"oldest due: {table}", sql)]
    held = [row for table, sql in HELD.items() for row in fetch(f"leases: {table}", sql, limit=held_limit)]
    return {
        "read_at": current_time(conn),
        "last_webhooks": dict.fromkeys(providers) | {row["provider"]: row["received_at"] for row in webhooks},
        "in_flight": {row["provider"]: int(row["value"]) for row in fetch("in flight", IN_FLIGHT)},
        "oldest_due_seconds": {row["table"]: float(row["value"]) for row in due},
        "leases": sorted(held, key=lambda row: (row["leased_by"], row["leased_until"]))[:held_limit],
        **{name: fetch(*part) for name, part in _ROWS.items()},
        **{name: float(rows[0]["value"]) if (rows := fetch(*part)) else None for name, part in _SECONDS.items()},
        "locked": locked,
    }
