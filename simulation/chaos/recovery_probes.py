"""Probes that detect a recovery in PostgreSQL's rows, by kind of fault."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Work that any worker could claim now.
_DUE: Final = """
SELECT 1 AS found FROM outputs WHERE state = 'waiting' AND lease_token IS NULL AND run_at <= moment()
 UNION ALL
SELECT 1 FROM deliveries WHERE state = 'new' AND lease_token IS NULL AND run_at <= moment()
"""

# A file that is being downloaded, or will be after the retry delay that the fault itself caused.
_UNKEPT: Final = """
SELECT 1 AS found FROM outputs WHERE state = 'waiting' AND run_at <= moment() + interval '30 s'
"""

_RUNNING: Final = "SELECT 1 AS found FROM predictions WHERE state = 'running'"

_WORKED: Final = """
SELECT 1 AS found FROM events
 WHERE id > %(event)s
   AND ((subject = 'delivery' AND to_state = 'applied') OR (subject = 'output' AND to_state = 'kept'))
"""

_KEPT: Final = """
SELECT 1 AS found FROM events WHERE id > %(event)s AND subject = 'output' AND to_state = 'kept'
"""

# The state before a recovery, which must follow it.
MARK: Final = """
SELECT (SELECT coalesce(max(id), 0) FROM events) AS event,
       (SELECT coalesce(max(id::text), '') FROM deliveries) AS delivery,
       ARRAY(SELECT slot FROM ticks WHERE sweep = 'dispatch') AS slots,
       ARRAY(SELECT leased_by FROM outputs WHERE lease_token IS NOT NULL
              UNION ALL
             SELECT leased_by FROM deliveries WHERE lease_token IS NOT NULL) AS busy
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """Statements that detect the recovery from a fault."""

    waiting: str  # finds a row while work waits for the component; without any there is no recovery to measure
    recovered: str  # finds a row once the component has served something after the mark


def _or_nothing_due(worked: str) -> str:
    return f"SELECT 1 AS found WHERE EXISTS ({worked}) OR NOT EXISTS ({_DUE})"


WORK: Final = Probe(_DUE, _or_nothing_due(_WORKED))
# Tasks that arrived over the broker after the mark: those in flight do not need it any more.
WAKES: Final = Probe(_DUE, _or_nothing_due(f"{_WORKED} AND actor <> ALL (%(busy)s)"))
FILES: Final = Probe(_UNKEPT, _KEPT)
FILES_OF_VICTIM: Final = Probe(_UNKEPT, f"{_KEPT} AND actor LIKE %(victim)s")
# Recorded, and so acknowledged, by the restarted receiver; ids of deliveries are in order of time.
WEBHOOKS: Final = Probe(_RUNNING, "SELECT 1 AS found FROM deliveries WHERE id::text > %(delivery)s LIMIT 1")
TICKS: Final = Probe(
    "SELECT 1 AS found", "SELECT 1 AS found FROM ticks WHERE sweep = 'dispatch' AND slot <> ALL (%(slots)s)"
)

# Measured from the end of the fault. Kinds that interrupt leases (LEASE_KINDS) are measured by the rows that were held.
PROBES: Final[Mapping[str, Probe]] = {
    **dict.fromkeys(("PostgreSQL killed", "PostgreSQL cut", "PostgreSQL stalled", "clock jump"), WORK),
    **dict.fromkeys(("broker killed", "broker emptied", "broker cut", "broker stalled"), WAKES),
    **dict.fromkeys(("storage killed", "storage cut", "storage stalled", "provider outage"), FILES),
    "disk full": FILES_OF_VICTIM,
    "receiver killed": WEBHOOKS,
    "beat killed": TICKS,
    "no beat": TICKS,
}
LEASE_KINDS: Final = frozenset({"pool child killed", "worker killed", "worker frozen"})
