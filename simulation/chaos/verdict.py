"""The verdict of a drill: everything that was sent is accounted for, and a fault explains every repeated attempt."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from db.connection import Connection, Row, fetch_all, fetch_one
from moorage.transitions import EventKind
from simulation.cases import CaseRun
from simulation.chaos.faults import KINDS
from simulation.chaos.targets import Fault
from simulation.job_check import JUMP_SECONDS, Verdict
from simulation.ledger_check import check_ledger
from storage.s3 import ObjectStore

# A lost lease is detected late: it must end, sweeps release none for half a minute after PostgreSQL's start, and other
# faults delay the sweep. An error is recorded as soon as PostgreSQL accepts it: at most 11 s after its fault so far.
AFTERMATH_SECONDS: Final = 90.0
ERROR_AFTERMATH_SECONDS: Final = 45.0
KILLS: Final = frozenset({"pool child killed", "worker killed"})
_POSTGRES: Final = frozenset(kind for kind in KINDS if kind.startswith("PostgreSQL ")) | {"primary lost"}
_STORAGE: Final = frozenset(kind for kind in KINDS if kind.startswith("storage ")) | {"quick without storage"}

# The kinds of fault that can cause a kind of event. No fault of a drill stops a worker gracefully.
CAUSES: Final[Mapping[EventKind, frozenset[str]]] = {
    "worker_died": KILLS,
    "lease_expired": KILLS | _POSTGRES | {"worker frozen", "clock jump", "quick without storage"},
    "worker_stopping": frozenset(),
    "disk_failed": frozenset({"disk full", "worker disk full"}),
    "storage_failed": _STORAGE,
    "source_unavailable": frozenset({"provider outage"}),
    "source_interrupted": frozenset({"provider outage", "worker frozen"}),
    "attempt_failed": frozenset(KINDS),
}
# Events that the provider's script can cause without a fault.
OF_PROVIDER: Final = frozenset[EventKind]({"source_unavailable", "source_interrupted", "attempt_failed"})
# Events that occur only at the worker that was hit, if the fault hits one.
OF_VICTIM: Final = frozenset[EventKind]({"worker_died", "disk_failed"})
# Events that are recorded as late as a lease ends; every other error is recorded at once.
LATE: Final = frozenset[EventKind]({"lease_expired", "attempt_failed"})

# Each time work was released or taken away before its end; `prompt`: of the entry of a prediction.
REPEATED: Final = """
SELECT e.subject, e.subject_id, coalesce(e.kind, 'attempt_failed') AS kind, e.reason,
       e.actor, split_part(e.actor, '@', 1) AS node, extract(epoch FROM e.at)::float8 AS at, p.external_id, o.path,
       j.fallback_chain -> t.entry -> 'input' ->> 'prompt' AS prompt
  FROM events e
  LEFT JOIN outputs o ON e.subject = 'output' AND o.id = e.subject_id
  LEFT JOIN predictions p ON p.id = o.prediction_id
  LEFT JOIN predictions t ON e.subject = 'prediction' AND t.id = e.subject_id
  LEFT JOIN jobs j ON j.id = t.job_id
 WHERE (e.from_state = e.to_state AND e.subject IN ('delivery', 'output', 'prediction')
        AND coalesce(e.kind, '') NOT IN ('deferred', 'resumed'))
    OR (e.subject = 'prediction' AND e.from_state = 'submitting' AND e.to_state = 'planned')
"""

# Webhooks that were received in the first half of a time, and how many of them were ingested within all of it.
INGESTED: Final = """
SELECT count(*) AS received, count(*) FILTER (WHERE ended_at < to_timestamp(%(ended_at)s)) AS ingested
  FROM deliveries
 WHERE received_at BETWEEN to_timestamp(%(began_at)s) AND to_timestamp((%(began_at)s + %(ended_at)s) / 2)
"""


def judge_drill(
    conn: Connection, blobs: ObjectStore, ledger: dict[str, Any], runs: Sequence[CaseRun], landed: Sequence[Fault]
) -> Verdict:
    jumps = [(fault.began_at, fault.ended_at) for fault in landed if fault.kind == "clock jump"]
    verdict = check_ledger(conn, blobs, ledger, runs, jumps)
    lines = [line for expected in ("kept", "dead") for line in ledger["summary"]["expected"][expected]]
    outputs = {(line["prediction"], line["path"]) for line in lines if line["fault"]}
    entries = [(run.case.prompt(n), entry) for run in runs for n, entry in enumerate(run.case.chain)]
    prompts = {prompt for prompt, entry in entries if entry.is_troubled}

    def is_troubled(row: Row) -> bool:
        """Return True if the repeated row has a fault of the provider by its script."""
        return (row["external_id"], row["path"]) in outputs or row["prompt"] in prompts

    repeated = fetch_all(conn, REPEATED)
    verdict.repeated = len(repeated)
    verdict.unexplained += find_unexplained(repeated, landed, is_troubled)
    verdict.unexpected += _find_waiting_quick(conn, landed)
    return verdict


def _find_waiting_quick(conn: Connection, landed: Iterable[Fault]) -> list[str]:
    """Ingesting a webhook needs no storage: a worker that starts without it works."""
    times = [{"began_at": f.began_at, "ended_at": f.ended_at} for f in landed if f.kind == "quick without storage"]
    counts = [row for time in times if (row := fetch_one(conn, INGESTED, time))]
    return [
        f"none of {row['received']} webhooks was ingested while storage was unavailable"
        for row in counts
        if row["received"] and not row["ingested"]
    ]


def find_unexplained(rows: Sequence[Row], landed: Sequence[Fault], is_troubled: Callable[[Row], bool]) -> list[str]:
    """
    Return the repeats that no fault explains, and deaths of pool children in excess of the kills.

    Args:
        rows: of `REPEATED`.
        is_troubled: True if the provider has a fault for a row by its script, which explains what it can cause.
    """
    unexplained = [
        f"{row['subject']} {row['subject_id']} was repeated without a fault: {row['reason']}"
        for row in rows
        if not (row["kind"] in OF_PROVIDER and is_troubled(row))
        and not any(_explains(fault, row, time) for time in _possible_times(row, landed) for fault in landed)
    ]
    return [*_find_excess_deaths(rows, landed), *unexplained]


def _possible_times(row: Row, landed: Iterable[Fault]) -> Iterator[float]:
    """Yield the time of an event, and the true time if it may be by a clock that had jumped by an hour."""
    recorded_at: float = row["at"]
    yield recorded_at
    for true_time in (recorded_at - JUMP_SECONDS, recorded_at + JUMP_SECONDS):
        if any(fault.kind == "clock jump" and _covers(fault, true_time, AFTERMATH_SECONDS) for fault in landed):
            yield true_time


def _covers(fault: Fault, time: float, aftermath_seconds: float) -> bool:
    return fault.began_at - 1 <= time <= fault.ended_at + aftermath_seconds


def _explains(fault: Fault, row: Row, time: float) -> bool:
    kind: EventKind = row["kind"]
    is_possible = fault.kind in CAUSES[kind] and (kind not in OF_VICTIM or fault.victim in ("", row["node"]))
    return is_possible and _covers(fault, time, AFTERMATH_SECONDS if kind in LATE else ERROR_AFTERMATH_SECONDS)


def _find_excess_deaths(rows: Iterable[Row], landed: Iterable[Fault]) -> list[str]:
    """
    Compare the tasks that died, each with all its rows, with the kills, of which one is near any death. A task whose
    message the broker delivered again counts once.
    """
    died = Counter(node for node, _ in {(row["node"], row["actor"]) for row in rows if row["kind"] == "worker_died"})
    killed = Counter(fault.victim for fault in landed if fault.kind in KILLS)
    return [
        f"{node}: {count} processes died during work, and {killed[node]} were killed"
        for node, count in died.items()
        if count > killed[node]
    ]
