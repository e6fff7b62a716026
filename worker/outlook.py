"""What happens next to a row, told from its columns; pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from worker.console import ago

Row = Mapping[str, Any]

_LIVE: Final = frozenset(
    {"new", "unmatched", "open", "keeping", "planned", "submitting", "running", "abandoned", "waiting", "discarding"}
)


def lines(rows: Sequence[tuple[str, Row]], letters: Sequence[Row], now: datetime) -> list[str]:
    """
    Return what happens next, a line a live row and a line an open dead letter; one line that says so when it is over.

    Args:
        rows: each with its subject: delivery, job, prediction, output or notice.
    """
    told = [_next(subject, row, now) for subject, row in rows if row["state"] in _LIVE]
    told += [f"dead letter {x['id']} waits: moorage dead replay {x['id']}" for x in letters if x["state"] == "open"]
    return told or ["nothing more: it is over"]


def _next(subject: str, row: Row, now: datetime) -> str:
    if subject == "job":
        return _job(row, now)
    name = _name(subject, row)
    if row.get("leased_by"):
        lease = ago(row["leased_until"], now)
        return f"{name}: attempt {row['attempt']} runs at {row['leased_by']}, its lease ends {lease}"
    return f"{name}: {_when(row, now)}"


def _name(subject: str, row: Row) -> str:
    if subject == "output":
        return f"output {row['path']}"
    return f"{subject} {row['external_id'] or row['id']}" if subject == "prediction" else subject


def _job(row: Row, now: datetime) -> str:
    if row["state"] == "open":
        return f"job: waits for files, its deadline is {ago(row['deadline_at'], now)}"
    return f"job: ends with its last file, which is counted again {_due(row, now)}"


def _when(row: Row, now: datetime) -> str:
    state, due = row["state"], _due(row, now)
    if state == "unmatched":
        return f"looked up again {due}, given up {ago(row['unmatched_until'], now)}"
    if state == "planned":
        return f"submitted {due}, if there is room at {row['provider']}"
    if state == "submitting":
        return f"looked up {due}: whether {row['provider']} made it is not known"
    if state == "abandoned" and row["external_id"] is None:
        return f"perhaps it was never made: only its webhook can tell of it, given up {due}"
    if state == "abandoned":
        return f"a late answer still counts, asked a last time {due}"
    if state == "running":
        return f"poll {row['polls'] + 1} {due}, its deadline is {ago(row['deadline_at'], now)}"
    if state == "discarding":
        return f"its objects are deleted {due}"
    dies = f", its URL dies {ago(row['expires_at'], now)}" if row.get("expires_at") else ""
    return f"attempt {row['attempt'] + 1} {due}{dies}"


def _due(row: Row, now: datetime) -> str:
    return "now" if row["run_at"] <= now else ago(row["run_at"], now)
