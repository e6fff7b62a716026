"""Queries of `moorage status`: live work, read through partial indexes of live rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from db import pauses, ticks, usage
from db.connection import Connection, Row, current_time, fetch_all
from db.leases import JOB_ID, SUBJECT
from db.reports import metrics

LAST_WEBHOOKS: Final = """
SELECT p.provider, d.received_at FROM unnest(%(providers)s::text[]) AS p (provider)
  LEFT JOIN LATERAL (SELECT received_at FROM deliveries WHERE provider = p.provider
                      ORDER BY received_at DESC LIMIT 1) d ON true
 ORDER BY p.provider
"""

# Predictions submitted by applications do not count, as in submissions.has_capacity.
IN_FLIGHT: Final = """
SELECT provider, count(*) AS value FROM predictions
 WHERE state IN ('submitting', 'running') AND entry IS NOT NULL GROUP BY provider
"""

# The time of a claim is not recorded, only the end of the lease, from which the last renewal follows.
_HELD: Final = " UNION ALL ".join(
    f"SELECT '{subject}' AS subject, id, {JOB_ID[table]} AS job_id, leased_by, attempt, leased_until"
    f" FROM {table} WHERE lease_token IS NOT NULL"
    for table, subject in SUBJECT.items()
)
HELD: Final = f"""
SELECT subject, id, job_id, leased_by, attempt, leased_until, leased_until < moment() AS is_over
  FROM ({_HELD}) held ORDER BY leased_by, leased_until LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of all live work. The lists contain the columns of their statements."""

    read_at: datetime
    last_webhooks: dict[str, datetime | None]
    deliveries: list[Row]  # state, provider, value
    jobs: list[Row]  # state, provider, value
    predictions: list[Row]  # state, provider, value
    in_flight: dict[str, int]  # submissions by provider
    outputs: list[Row]  # state, provider, value
    notifications: list[Row]  # state, value: waiting, or ended in the last 24 hours
    oldest_due_seconds: dict[str, float]  # by table
    soonest_expiry_seconds: float | None
    leases: list[Row]
    ticks: list[Row]
    dead_letters: list[Row]  # provider, step, category, value
    pauses: list[Row]  # see pauses.list_pauses
    storage_use: list[Row]  # bucket, owner, objects, bytes, computed_at


def read_overview(conn: Connection, providers: Sequence[str], *, held_limit: int = 200) -> Overview:
    """Read everything in the caller's transaction."""
    expiry = fetch_all(conn, metrics.SOONEST_EXPIRY)
    webhooks = fetch_all(conn, LAST_WEBHOOKS, {"providers": list(providers)})
    return Overview(
        read_at=current_time(conn),
        last_webhooks={row["provider"]: row["received_at"] for row in webhooks},
        deliveries=fetch_all(conn, metrics.DELIVERIES),
        jobs=fetch_all(conn, metrics.JOBS),
        predictions=fetch_all(conn, metrics.PREDICTIONS),
        in_flight={row["provider"]: int(row["value"]) for row in fetch_all(conn, IN_FLIGHT)},
        outputs=fetch_all(conn, metrics.OUTPUTS),
        notifications=fetch_all(conn, metrics.NOTIFICATIONS),
        oldest_due_seconds={row["table"]: float(row["value"]) for row in fetch_all(conn, metrics.OLDEST_DUE)},
        soonest_expiry_seconds=float(expiry[0]["value"]) if expiry else None,
        leases=fetch_all(conn, HELD, {"limit": held_limit}),
        ticks=ticks.list_latest(conn),
        dead_letters=fetch_all(conn, metrics.DEAD_LETTERS),
        pauses=pauses.list_pauses(conn),
        storage_use=usage.list_largest(conn),
    )
