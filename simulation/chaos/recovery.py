"""Measures the time from a fault until work continues, from PostgreSQL's rows alone."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import psycopg

from db.connection import Connection, Database, Row, fetch_all, fetch_one
from moorage.errors import DatabaseUnavailable

Outcome = Literal["recovered", "waiting", "nothing to measure"]

GIVE_UP_SECONDS: Final = 180.0
WORK_TABLES: Final = ("deliveries", "predictions", "outputs")

HELD = " UNION ALL ".join(
    f"SELECT id, lease_token, leased_by FROM {table} WHERE lease_token IS NOT NULL" for table in WORK_TABLES
)

# The row has another lease or has ended; waiting for a retry counts, too: its lease was released.
IS_RESUMED = " UNION ALL ".join(
    f"""SELECT 1 AS found FROM {table}
 WHERE id = %(id)s AND (run_at IS NULL OR run_at > moment()
                        OR (lease_token IS NOT NULL AND lease_token <> %(lease_token)s))"""
    for table in WORK_TABLES
)

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


@dataclass(slots=True)
class Measurement:
    """A recovery that is being measured."""

    kind: str
    started: float
    held: list[Row] = field(default_factory=list)  # with their leases
    probe: Probe | None = None  # for kinds of fault that do not interrupt leases
    victim: str = ""  # of the probe
    mark: dict[str, Any] | None = None  # of the probe, read at the first check
    is_disturbed: bool = False  # another fault has delayed the recovery


class RecoveryMonitor:
    """Measures recoveries over a connection that bypasses the proxies."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, name="moorage-drill")
        self._measurements: list[Measurement] = []
        self._held: list[Row] = []
        self.seconds: dict[str, list[float]] = {}
        self.unrecovered: list[str] = []

    def read_state(self) -> None:
        """Remember the leases, before a fault; none while PostgreSQL is unavailable."""
        self._held = []
        try:
            self._held = fetch_all(self._database.connection(), HELD)
        except (psycopg.Error, DatabaseUnavailable):
            self.close()

    def measure_leases(self, kind: str, node: str) -> None:
        """Measure from now until the rows of a victim are resumed, or have ended."""
        held = [row for row in self._held if row["leased_by"].startswith(f"{node}@")]
        if held:
            self._measurements.append(Measurement(kind, time.monotonic(), held))

    def measure_probe(self, kind: str, probe: Probe, victim: str = "") -> None:
        """Measure from now, the end of the fault, until its probe detects the recovery."""
        self._measurements.append(Measurement(kind, time.monotonic(), probe=probe, victim=victim))

    def mark_disturbed(self, *, leases_only: bool = False) -> None:
        """Note that another fault delays the current recoveries: their times are reported separately."""
        for measurement in self._measurements:
            if not leases_only or measurement.probe is None:
                measurement.is_disturbed = True

    def check(self) -> None:
        """Check every measurement once; called several times per second."""
        if not self._measurements:
            return
        try:
            conn = self._database.connection()
            for measurement in list(self._measurements):
                self._check_one(conn, measurement)
        except (psycopg.Error, DatabaseUnavailable):
            self.close()

    def _check_one(self, conn: Connection, measurement: Measurement) -> None:
        elapsed = time.monotonic() - measurement.started
        match self._outcome(conn, measurement):
            case "recovered":
                kind = f"{measurement.kind}, then disturbed" if measurement.is_disturbed else measurement.kind
                self.seconds.setdefault(kind, []).append(elapsed)
                self._measurements.remove(measurement)
            case "nothing to measure":
                self._measurements.remove(measurement)
            case "waiting" if elapsed > GIVE_UP_SECONDS:
                if not measurement.is_disturbed:  # else other faults delayed it; unfinished work shows in the verdict
                    self.unrecovered.append(f"{measurement.kind}: no work for {elapsed:.0f} s")
                self._measurements.remove(measurement)

    def _outcome(self, conn: Connection, measurement: Measurement) -> Outcome:
        if measurement.probe is not None:
            return self._run_probe(conn, measurement, measurement.probe)
        measurement.held = [row for row in measurement.held if fetch_one(conn, IS_RESUMED, row) is None]
        return "waiting" if measurement.held else "recovered"

    def _run_probe(self, conn: Connection, measurement: Measurement, probe: Probe) -> Outcome:
        if measurement.mark is None:
            measurement.mark = {**(fetch_one(conn, MARK, {}) or {}), "victim": f"{measurement.victim}@%"}
        elif fetch_one(conn, probe.recovered, measurement.mark):
            return "recovered"
        return "waiting" if fetch_one(conn, probe.waiting, {}) else "nothing to measure"

    def recovery_times(self) -> list[tuple[str, int, float, float]]:
        """Return kind, count, median and worst seconds."""
        return [(kind, len(s), statistics.median(s), max(s)) for kind, s in sorted(self.seconds.items())]

    def close(self) -> None:
        """Close the connection; the next check opens another."""
        self._database.close()
