"""Correction of times left in the future by a database clock that was set back."""

from typing import Final

from db.connection import Connection, fetch_all
from db.leases import LIVE

# Ticks alone do not show a change while no beat ran. Those in the future are passed over by readers and not deleted, so
# that the correction is repeated for rows that were locked.
IS_SET_BACK = """(EXISTS (SELECT FROM ticks WHERE started_at > moment() + interval '1 min')
    OR EXISTS (SELECT FROM events WHERE at > moment() + interval '1 min'))"""

_LIVE: Final = {table: f"state IN ({states})" for table, states in LIVE.items()}
_WAITING: Final = _LIVE | {
    # Not those that only wait for their end, as their provider cannot be polled.
    "predictions": """(state IN ('planned', 'submitting') OR (state = 'running' AND run_at <> deadline_at)
        OR (state = 'abandoned' AND abs(extract(epoch FROM run_at - output_until)) > 1))"""
}


def _build_correction(table: str, condition: str, values: str) -> str:
    return f"""
WITH wrong AS MATERIALIZED (SELECT id FROM {table} WHERE {condition} FOR UPDATE SKIP LOCKED)
UPDATE {table} t SET {values} FROM wrong WHERE t.id = wrong.id RETURNING t.id
"""


# Waits are five minutes at most, those of notifications 26 hours. Only a longer Retry-After is shortened by this.
_IS_FAR: Final = "lease_token IS NULL AND run_at > moment() + interval"
_MAX_WAITS: Final = {"notifications": "27 h"}
_SUBMITTED_AT: Final = {
    "predictions": ", submitted_at = CASE WHEN submitted_at > moment() THEN moment() ELSE submitted_at END"
}
# A live worker renews within a third of its lease; that of a dead worker now expires in time.
_IS_LONG: Final = "lease_token IS NOT NULL AND leased_until > moment() + make_interval(secs => 2 * %(lease_seconds)s)"
CORRECTIONS: Final[dict[str, str]] = {
    f"{table} {name}": _build_correction(table, condition, values)
    for table, waiting in _WAITING.items()
    for name, condition, values in (
        (
            "due",
            f"{waiting} AND {_IS_FAR} '{_MAX_WAITS.get(table, '10 min')}'",
            f"run_at = moment(), woken_at = NULL{_SUBMITTED_AT.get(table, '')}",
        ),
        ("leased", _IS_LONG, "leased_until = moment() + make_interval(secs => %(lease_seconds)s)"),
        # Its wake may be lost. Also of those that only wait for their end.
        ("woken", f"{_LIVE[table]} AND woken_at > moment() + interval '1 min'", "woken_at = NULL"),
    )
}
CORRECTIONS["jobs"] = _build_correction(  # whose outputs are counted again each five minutes
    "jobs", "state = 'keeping' AND run_at > moment() + interval '10 min'", "run_at = moment()"
)
# An open breaker is probed each five seconds; attempts count for less than a minute.
CORRECTIONS["breakers"] = """
WITH forgotten AS (DELETE FROM target_attempts WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM target_attempts WHERE at > moment() + interval '1 min' FOR UPDATE SKIP LOCKED))),
wrong AS MATERIALIZED (
    SELECT target FROM breakers WHERE greatest(probe_at, opened_at) > moment() + interval '1 min' FOR UPDATE SKIP LOCKED
)
UPDATE breakers b SET probe_at = least(probe_at, moment()), opened_at = least(opened_at, moment())
  FROM wrong WHERE b.target = wrong.target RETURNING b.target
"""


def correct_future_times(conn: Connection, lease_seconds: float) -> int:
    """Make unlocked rows due that would wait too long, and shorten leases; return the number of corrections."""
    return sum(len(fetch_all(conn, sql, {"lease_seconds": lease_seconds})) for sql in CORRECTIONS.values())
