"""How fast work went on after a fault, measured from PostgreSQL's rows, not from what anything claims."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

import psycopg

from db.connection import Connection, connect, fetch_all, fetch_one
from moorage.errors import DatabaseUnavailable
from simulation.chaos import recovery_probes
from simulation.chaos.recovery_probes import Need

Outcome = Literal["over", "waiting", "nothing to measure"]

GIVE_UP_SECONDS: Final = 180.0
IDLE_SECONDS: Final = 8.0
NO_TOKEN: Final = UUID(int=0)
TABLES: Final = {"delivery": "deliveries", "prediction": "predictions", "output": "outputs"}

# What a killed process holds: by node name, for one child its rows are those that its worker frees first.
HELD = """
SELECT 'deliveries' AS table_name, id, lease_token FROM deliveries
 WHERE leased_by LIKE %(node)s AND lease_token IS NOT NULL
 UNION ALL
SELECT 'predictions', id, lease_token FROM predictions WHERE leased_by LIKE %(node)s AND lease_token IS NOT NULL
 UNION ALL
SELECT 'outputs', id, lease_token FROM outputs WHERE leased_by LIKE %(node)s AND lease_token IS NOT NULL
"""

# Somebody else has it, or it has ended; retried and waiting again counts too: its lease was seen to.
IS_TAKEN = {
    table: f"""
SELECT id FROM {table}
 WHERE id = %(id)s AND (run_at IS NULL OR run_at > moment()
                        OR (lease_token IS NOT NULL AND lease_token <> %(token)s))
"""
    for table in ("deliveries", "predictions", "outputs")
}

RELEASED = """
SELECT subject, subject_id FROM events
 WHERE id > %(after)s AND actor LIKE %(node)s AND kind = 'worker_died'
"""

LAST_EVENT = "SELECT coalesce(max(id), 0) AS id FROM events"


@dataclass(slots=True)
class Watched:
    """One recovery under measurement."""

    kind: str
    since: float
    held: list[tuple[str, UUID, UUID]] = field(default_factory=list)
    node: str | None = None  # of a dead child: its worker says which rows it held
    after_event: int = 0  # of a dead child: what happened before does not count
    need: Need | None = None  # what the fault took away, if not leases
    mark: dict[str, Any] | None = None  # what there was at the first look: only what comes after it counts
    is_disturbed: bool = False  # another fault held the recovery up


class Recovery:
    """Watches what faults interrupted until it goes on; over a connection past the proxies."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: Connection | None = None
        self._watched: list[Watched] = []
        self._marked = 0
        self.seconds: dict[str, list[float]] = {}
        self.unrecovered: list[str] = []

    def held_by(self, node: str) -> list[tuple[str, UUID, UUID]]:
        """Return the rows that a worker holds now, with their tokens; nothing while PostgreSQL is away."""
        try:
            rows = fetch_all(self._connection(), HELD, {"node": f"{node}@%"})
        except (psycopg.Error, DatabaseUnavailable):
            self.close()
            return []
        return [(row["table_name"], row["id"], row["lease_token"]) for row in rows]

    def watch_held(self, kind: str, held: list[tuple[str, UUID, UUID]]) -> None:
        """Measure from now until every row that a dead process held is taken up again."""
        if held:
            self._watched.append(Watched(kind, time.monotonic(), held=held))

    def mark(self) -> None:
        """Remember the newest event: what a fault interrupts comes after it."""
        try:
            row = fetch_one(self._connection(), LAST_EVENT, {})
        except (psycopg.Error, DatabaseUnavailable):
            self.close()
        else:
            self._marked = int(row["id"]) if row else 0

    def watch_released(self, kind: str, node: str) -> None:
        """Measure from now until the rows of a dead child, freed by its worker, are taken up again."""
        self._watched.append(Watched(kind, time.monotonic(), node=node, after_event=self._marked))

    def watch_need(self, kind: str, victim: str = "") -> None:
        """Measure from now, the end of the fault, until what it took away serves again; not where nothing waits."""
        self._watched.append(Watched(kind, time.monotonic(), need=recovery_probes.NEEDS[kind], node=victim or None))

    def disturb(self, *, leases_only: bool = False) -> None:
        """Note that a fault now holds up whatever is being recovered: such times are told apart."""
        for watched in self._watched:
            if not leases_only or watched.need is None:
                watched.is_disturbed = True

    def look(self) -> None:
        """Look once at everything watched; called several times a second."""
        if not self._watched:
            return
        try:
            conn = self._connection()
            for watched in list(self._watched):
                self._look_at(conn, watched)
        except (psycopg.Error, DatabaseUnavailable):
            self.close()

    def _look_at(self, conn: Connection, watched: Watched) -> None:
        took = time.monotonic() - watched.since
        match self._outcome(conn, watched, took):
            case "over":
                kind = f"{watched.kind}, then disturbed" if watched.is_disturbed else watched.kind
                self.seconds.setdefault(kind, []).append(took)
                self._watched.remove(watched)
            case "nothing to measure":
                self._watched.remove(watched)
            case "waiting" if took > GIVE_UP_SECONDS:
                if not watched.is_disturbed:  # else other faults held it up; what is left of it shows in the verdict
                    self.unrecovered.append(f"{watched.kind}: nothing went on for {took:.0f} s")
                self._watched.remove(watched)

    def _outcome(self, conn: Connection, watched: Watched, took: float) -> Outcome:
        if watched.need is not None:
            return self._of_need(conn, watched, watched.need)
        if watched.node is not None and not self._finds_released(conn, watched):
            return "nothing to measure" if took > IDLE_SECONDS else "waiting"  # the child held nothing
        return "over" if self._are_taken(conn, watched) else "waiting"

    def _of_need(self, conn: Connection, watched: Watched, need: Need) -> Outcome:
        if watched.mark is None:
            watched.mark = {**recovery_probes.mark(conn), "victim": f"{watched.node}@%"}
        elif recovery_probes.finds(conn, need.met, watched.mark):
            return "over"
        return "waiting" if recovery_probes.finds(conn, need.waits, {}) else "nothing to measure"

    def _finds_released(self, conn: Connection, watched: Watched) -> bool:
        if not watched.held:
            rows = fetch_all(conn, RELEASED, {"after": watched.after_event, "node": f"{watched.node}@%"})
            watched.held = [(TABLES[row["subject"]], row["subject_id"], NO_TOKEN) for row in rows]
        return bool(watched.held)

    def _are_taken(self, conn: Connection, watched: Watched) -> bool:
        watched.held = [
            (table, row_id, token)
            for table, row_id, token in watched.held
            if fetch_one(conn, IS_TAKEN[table], {"id": row_id, "token": token}) is None
        ]
        return not watched.held

    def table(self) -> list[tuple[str, int, float, float]]:
        """Return kind, count, median and worst seconds."""
        return [
            (kind, len(found), statistics.median(found), max(found)) for kind, found in sorted(self.seconds.items())
        ]

    def _connection(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._url, name="moorage-drill")
        return self._conn

    def close(self) -> None:
        """Close the connection; the next look makes another."""
        if self._conn is not None:
            self._conn.close()
        self._conn = None
