"""What a fault takes away, and how PostgreSQL's rows show that it is there again: by kind of fault."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from db.connection import Connection, fetch_one

# Work that any worker could take up now.
_DUE: Final = """
SELECT 1 AS found FROM outputs WHERE state = 'waiting' AND lease_token IS NULL AND run_at <= moment()
 UNION ALL
SELECT 1 FROM deliveries WHERE state = 'new' AND lease_token IS NULL AND run_at <= moment()
"""

# A file that is fetched, or that will be as soon as the wait is over that the fault itself brought it.
_UNKEPT: Final = """
SELECT 1 AS found FROM outputs WHERE state = 'waiting' AND run_at <= moment() + interval '30 s'
"""

_ANNOUNCED: Final = "SELECT 1 AS found FROM predictions WHERE state = 'running'"

_WORKED: Final = """
SELECT 1 AS found FROM events
 WHERE id > %(event)s
   AND ((subject = 'delivery' AND to_state = 'applied') OR (subject = 'output' AND to_state = 'kept'))
"""

_KEPT: Final = """
SELECT 1 AS found FROM events WHERE id > %(event)s AND subject = 'output' AND to_state = 'kept'
"""

MARK: Final = """
SELECT (SELECT coalesce(max(id), 0) FROM events) AS event,
       (SELECT coalesce(max(id::text), '') FROM deliveries) AS delivery,
       ARRAY(SELECT slot FROM ticks WHERE sweep = 'dispatch') AS slots,
       ARRAY(SELECT leased_by FROM outputs WHERE lease_token IS NOT NULL
              UNION ALL
             SELECT leased_by FROM deliveries WHERE lease_token IS NOT NULL) AS busy
"""


@dataclass(frozen=True, slots=True)
class Need:
    """
    What a fault took away.

    Args:
        waits: finds a row while something waits for it; where nothing does there is no recovery to measure.
        met: finds a row once it has served something that came after the mark (see `mark`).
    """

    waits: str
    met: str


def _or_all_taken(worked: str) -> str:
    return f"SELECT 1 AS found WHERE EXISTS ({worked}) OR NOT EXISTS ({_DUE})"


WORK: Final = Need(_DUE, _or_all_taken(_WORKED))
# Of tasks that came over the broker since: those under way need it no more.
WAKES: Final = Need(_DUE, _or_all_taken(f"{_WORKED} AND actor <> ALL (%(busy)s)"))
FILES: Final = Need(_UNKEPT, _KEPT)
FILES_OF_VICTIM: Final = Need(_UNKEPT, f"{_KEPT} AND actor LIKE %(victim)s")
# Recorded, and in the same moment acknowledged, by the receiver started since; its ids tell the time.
WEBHOOKS: Final = Need(_ANNOUNCED, "SELECT 1 AS found FROM deliveries WHERE id::text > %(delivery)s LIMIT 1")
TICKS: Final = Need(
    "SELECT 1 AS found", "SELECT 1 AS found FROM ticks WHERE sweep = 'dispatch' AND slot <> ALL (%(slots)s)"
)

# Measured from the end of the fault. Those that take leases (LEASES) are measured by the rows that were held.
NEEDS: Final[Mapping[str, Need]] = {
    "PostgreSQL killed": WORK,
    "PostgreSQL cut": WORK,
    "PostgreSQL stalled": WORK,
    "clock jump": WORK,
    "broker killed": WAKES,
    "broker emptied": WAKES,
    "broker cut": WAKES,
    "broker stalled": WAKES,
    "storage killed": FILES,
    "storage cut": FILES,
    "storage stalled": FILES,
    "provider outage": FILES,
    "disk full": FILES_OF_VICTIM,
    "receiver killed": WEBHOOKS,
    "beat killed": TICKS,
    "no beat": TICKS,
}
LEASES: Final = frozenset({"pool child killed", "worker killed", "worker frozen"})


def mark(conn: Connection) -> dict[str, Any]:
    """Return what there is now: only what comes after it shows a recovery."""
    return fetch_one(conn, MARK, {}) or {}


def finds(conn: Connection, statement: str, args: Mapping[str, Any]) -> bool:
    """Return whether a statement of a need finds a row."""
    return fetch_one(conn, statement, dict(args)) is not None
