"""Rows that ended, counted by five minutes; those after the last counted slot are read: a late sweep misses nothing."""

from datetime import UTC, datetime, timedelta
from typing import Final

from db.connection import Connection, fetch_one

_STATE: Final = "'' AS provider, state, '' AS detail, '' AS category"

# Table: the time of the end, the columns to count by, and the rows. `detail` of a job says whose files it has: those of
# the first entry of its fallback chain, of a later one, a placeholder, or none; of a prediction, what ended it: 'us' if
# a poll found the end of one that was to be cancelled, as 'poll' says that a webhook did not arrive in time.
_ENDED: Final = {
    "outputs": ("ended_at", _STATE, "outputs WHERE state IN ('kept', 'dead', 'discarded')"),
    "notifications": ("ended_at", _STATE, "notifications WHERE ended_at IS NOT NULL"),
    "predictions": ("ended_at", """provider, state,
       CASE WHEN ended_by = 'poll' AND cancel_reason IS NOT NULL THEN 'us' ELSE coalesce(ended_by, '') END AS detail,
       coalesce(category, '') AS category""", "predictions WHERE ended_at IS NOT NULL"),
    "jobs": ("settled_at", """'' AS provider, state, CASE WHEN state NOT IN ('failed', 'cancelled') THEN (
            SELECT CASE WHEN provider = 'placeholder' THEN 'placeholder' WHEN coalesce(entry, seq) = 0 THEN 'first'
                        ELSE 'fallback' END FROM predictions p WHERE p.id = jobs.chosen_id) END AS detail,
       '' AS category""", "jobs WHERE settled_at IS NOT NULL"),
}  # fmt: skip


def _select_ended(table: str, start: str, end: str) -> str:
    time, columns, rows = _ENDED[table]
    return f"""
SELECT date_bin('5 min', at, 'epoch') AS slot_at, provider, state, coalesce(detail, 'none') AS detail, category,
       count(*) AS value
  FROM (SELECT {time} AS at, {columns} FROM {rows} AND {time} >= {start} AND {time} < {end}) {table}
 GROUP BY 1, 2, 3, 4, 5"""


_COUNTED_UNTIL: Final = "(SELECT moved_at FROM cursors WHERE sweep = 'counts')"


def build_ended_select(table: str, interval: str, columns: str, condition: str = "true") -> str:
    """Return the statement that counts what ended within an interval, to five minutes, by `columns`."""
    start = f"greatest(moment() - interval '{interval}', {_COUNTED_UNTIL})"
    return f"""
SELECT {columns}, sum(value)::bigint AS value
  FROM (SELECT slot_at, provider, state, detail, category, value FROM ended_counts
         WHERE subject = '{table}' AND slot_at >= moment() - interval '{interval}' AND slot_at < {_COUNTED_UNTIL}
        UNION ALL {_select_ended(table, start, "'infinity'")}) ended
 WHERE {condition} GROUP BY {columns.replace("detail AS ", "")}
"""


LOCK: Final = "LOCK TABLE ended_counts IN SHARE ROW EXCLUSIVE MODE"

# Up to an hour later than last time. A slot is counted a minute after its end: what ended in it is committed by then.
NEXT_END: Final = f"""
SELECT least(until, greatest(counted, until - interval '25 h') + interval '1 h') AS slot_end
  FROM (SELECT date_bin('5 min', moment() - interval '1 min', 'epoch') AS until, {_COUNTED_UNTIL} AS counted) times
 WHERE counted IS DISTINCT FROM until
"""

DELETE_COUNTS: Final = """
DELETE FROM ended_counts WHERE slot_at >= %(start)s AND slot_at < %(end)s OR slot_at >= %(until)s
    OR slot_at < %(until)s::timestamptz - interval '25 h'
"""
ADD_COUNTS: Final = {
    table: f"""
INSERT INTO ended_counts (slot_at, provider, state, detail, category, value, subject)
SELECT ended.*, '{table}' FROM ({_select_ended(table, "%(start)s", "%(end)s")}) ended"""
    for table in _ENDED
}
SAVE_END: Final = """
INSERT INTO cursors (sweep, place, after_key, moved_at) VALUES ('counts', 'ended rows', '', %(end)s)
ON CONFLICT (sweep) DO UPDATE SET moved_at = excluded.moved_at
"""


def count_next_hour(conn: Connection) -> bool:
    """Count the hour before the next slot again, and an older one in turn; return False if all slots are counted."""
    conn.execute(LOCK)
    row = fetch_one(conn, NEXT_END, {})
    if row is None:
        return False
    end: datetime = row["slot_end"]
    for start in (choose_older_hour(end), end - timedelta(hours=1)):
        hour = {"start": start, "end": start + timedelta(hours=1)}
        conn.execute(DELETE_COUNTS, {**hour, "until": end})
        for sql in ADD_COUNTS.values():
            conn.execute(sql, hour)
    conn.execute(SAVE_END, {"end": end})
    return True


def choose_older_hour(end: datetime) -> datetime:
    """Return which of the last 24 whole hours has its turn: each has it in one of 24 slots that follow each other."""
    slot = int(end.timestamp()) // 300
    return datetime.fromtimestamp((slot // 12 - 1 - (slot // 12 - 1 - slot) % 24) * 3600, UTC)
