"""Is every repeated attempt explained by a fault: of a kind that can bring it, at its time, and at that worker?"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from moorage.transitions import EventKind
from simulation.chaos.faults import KINDS
from simulation.chaos.schedule import Landed

# A lost lease is seen late: it has to end, for half a minute after PostgreSQL's start no sweep frees any, and other
# faults hold the sweep up. An error is written as soon as PostgreSQL takes it: 11 s after its fault at the latest seen.
AFTERMATH_SECONDS: Final = 90.0
ERROR_AFTERMATH_SECONDS: Final = 45.0
JUMP_SECONDS: Final = 3600.0
KILLS: Final = frozenset({"pool child killed", "worker killed"})
_POSTGRES: Final = frozenset({"PostgreSQL killed", "PostgreSQL cut", "PostgreSQL stalled"})
_STORAGE: Final = frozenset({"storage killed", "storage cut", "storage stalled"})

# The kinds of fault that can cause an event of a kind: `attempt_failed` any. No fault of a drill stops a worker
# gracefully.
CAUSES: Final[Mapping[EventKind, frozenset[str]]] = {
    "worker_died": KILLS,
    "lease_expired": KILLS | _POSTGRES | {"worker frozen", "clock jump"},
    "worker_stopping": frozenset(),
    "disk_failed": frozenset({"disk full"}),
    "storage_failed": _STORAGE,
    "source_unavailable": frozenset({"provider outage"}),
    "source_interrupted": frozenset({"provider outage", "worker frozen"}),
    "attempt_failed": frozenset(KINDS),
}
# The provider's script can cause these without a fault.
OF_PROVIDER: Final = frozenset[EventKind]({"source_unavailable", "source_interrupted", "attempt_failed"})
# These happen in the worker that was hit, and in no other.
OF_VICTIM: Final = frozenset[EventKind]({"worker_died", "disk_failed"})
# These are recorded as late as a lease ends; every other error is written at once.
LATE: Final = frozenset[EventKind]({"lease_expired", "attempt_failed"})

# Each time work was given back or taken away before it had ended; `prompt`: of the entry that a try is of.
REPEATED: Final = """
SELECT e.subject, e.subject_id, coalesce(e.kind, 'attempt_failed') AS kind, e.reason,
       split_part(e.actor, '@', 1) AS node,
       extract(epoch FROM e.at)::float8 AS at, p.external_id, o.path,
       j.fallback_chain -> t.entry -> 'input' ->> 'prompt' AS prompt
  FROM events e
  LEFT JOIN outputs o ON e.subject = 'output' AND o.id = e.subject_id
  LEFT JOIN predictions p ON p.id = o.prediction_id
  LEFT JOIN predictions t ON e.subject = 'prediction' AND t.id = e.subject_id
  LEFT JOIN jobs j ON j.id = t.job_id
 WHERE (e.from_state = e.to_state AND e.subject IN ('delivery', 'output', 'prediction'))
    OR (e.subject = 'prediction' AND e.from_state = 'submitting' AND e.to_state = 'planned')
"""


def unexplained(
    rows: Sequence[Mapping[str, Any]], landed: Sequence[Landed], is_troubled: Callable[[Mapping[str, Any]], bool]
) -> list[str]:
    """
    Name the repeats that no fault explains, and the deaths of a worker's children beyond its kills.

    Args:
        rows: of `REPEATED`.
        is_troubled: whether the provider made trouble for a row by its script: that explains what providers can bring.
    """
    strange = [
        f"{row['subject']} {row['subject_id']} was repeated without a fault: {row['reason']}"
        for row in rows
        if not (row["kind"] in OF_PROVIDER and is_troubled(row))
        and not any(_explains(fault, row, at) for at in _times(row, landed) for fault in landed)
    ]
    return [*_uncounted_deaths(rows, landed), *strange]


def _times(row: Mapping[str, Any], landed: Iterable[Landed]) -> Iterator[float]:
    """Give the time of an edge; and where the clock had jumped, whose hour it then carries, the one that it was."""
    at: float = row["at"]
    yield at
    for was in (at - JUMP_SECONDS, at + JUMP_SECONDS):
        if any(fault.kind == "clock jump" and _is_near(fault, was, AFTERMATH_SECONDS) for fault in landed):
            yield was


def _is_near(fault: Landed, at: float, aftermath_seconds: float) -> bool:
    return fault.began_at - 1 <= at <= fault.ended_at + aftermath_seconds


def _explains(fault: Landed, row: Mapping[str, Any], at: float) -> bool:
    kind: EventKind = row["kind"]
    aftermath_seconds = AFTERMATH_SECONDS if kind in LATE else ERROR_AFTERMATH_SECONDS
    can = fault.kind in CAUSES[kind] and (kind not in OF_VICTIM or fault.victim == row["node"])
    return can and _is_near(fault, at, aftermath_seconds)


def _uncounted_deaths(rows: Iterable[Mapping[str, Any]], landed: Iterable[Landed]) -> list[str]:
    """A kill ends one task: kills come so thick that one is near any death, so they are counted against each other."""
    died = Counter(row["node"] for row in rows if row["kind"] == "worker_died")
    killed = Counter(fault.victim for fault in landed if fault.kind in KILLS)
    return [
        f"{node}: {number} processes died at their work, and {killed[node]} were killed"
        for node, number in died.items()
        if number > killed[node]
    ]
