"""Webhooks and files of the last hour, by five minutes: what the charts of the console show."""

from datetime import datetime, timedelta
from typing import Final

from db.connection import Connection, current_time, fetch_all
from db.ended_counts import build_ended_select

SLOT: Final = timedelta(minutes=5)
SLOTS: Final = 13  # the hour before, and the five minutes in progress

WEBHOOKS: Final = """
SELECT date_bin('5 min', received_at, 'epoch') AS slot_at, count(*) AS value
  FROM deliveries WHERE provider = ANY(%(providers)s::text[]) AND received_at >= moment() - interval '65 min'
 GROUP BY 1
"""
FILES: Final = build_ended_select("outputs", "65 min", "slot_at, state", "state IN ('kept', 'dead')")


def count_activity(conn: Connection, providers: list[str]) -> dict[str, list[float]]:
    """Return webhooks, files kept and files given up a minute, for each slot of the last hour and the present one."""
    now = current_time(conn)
    webhooks = {row["slot_at"]: int(row["value"]) for row in fetch_all(conn, WEBHOOKS, {"providers": providers})}
    files = {(row["state"], row["slot_at"]): int(row["value"]) for row in fetch_all(conn, FILES)}
    present = datetime.fromtimestamp(now.timestamp() // 300 * 300, now.tzinfo)
    slots = [present - n * SLOT for n in reversed(range(SLOTS))]
    minutes = [5.0] * (SLOTS - 1) + [max((now - present).total_seconds() / 60, 0.5)]

    def rate(counts: list[int]) -> list[float]:
        return [count / length for count, length in zip(counts, minutes, strict=True)]

    return {
        "webhooks": rate([webhooks.get(slot, 0) for slot in slots]),
        "files": rate([files.get(("kept", slot), 0) for slot in slots]),
        "dead": rate([files.get(("dead", slot), 0) for slot in slots]),
    }
