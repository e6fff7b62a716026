"""What became of each row that a task claimed, in the states and words that Celery's events carry to Flower."""

import json
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from celery.exceptions import Retry
from celery.worker.request import Request

from db.connection import Row
from moorage import logs
from moorage.errors import MoorageError
from moorage.model import Lease, Step
from moorage.text import to_storable

RowState = Literal["done", "retry", "dead"]
MAX_CHARS: Final = 400
_EVENTS: Final = {"done": "task-succeeded", "retry": "task-retried", "dead": "task-failed"}
_URL: Final = re.compile(r"\w+://[^\s'\"<>]+")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the step itself knows; the row says the rest."""

    state: RowState = "done"
    text: str = ""
    run_at: datetime | None = None
    category: str = ""
    error: MoorageError | None = None  # of a request to the provider; the step recorded itself what follows


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """`task_id` is that of Celery's task, or of the task that a further row of a batch is shown as."""

    row_id: str
    task_id: str
    state: RowState
    text: str
    run_at: datetime | None = None


class RowFailed(Exception):
    """The row of a task became a dead letter, or waits for its next attempt; this is recorded."""

    def __init__(self, outcomes: Sequence[RowOutcome]) -> None:
        super().__init__(outcomes)
        self.outcomes = outcomes

    def __str__(self) -> str:
        return self.outcomes[0].text

    __repr__ = __str__  # the form in which Celery sends an exception


class StepReport:
    """The return value of a task: Celery sends its `repr` to the worker's main process."""

    def __init__(self, outcomes: Sequence[RowOutcome]) -> None:
        self._outcomes = outcomes

    def __repr__(self) -> str:
        return json.dumps([astuple(outcome)[:4] for outcome in self._outcomes])


def parse_report(text: str) -> list[RowOutcome]:
    try:
        return [RowOutcome(*fields) for fields in json.loads(text)]
    except (ValueError, TypeError):
        return []


def build_outcomes(
    step: Step,
    results: Sequence[tuple[Lease, StepResult]],
    rows: Sequence[Row],
    *,
    waits_in: Sequence[str],
    seconds: float,
) -> list[RowOutcome]:
    """
    Return the outcomes of claimed rows, and of other rows of which the step wrote a dead letter.

    Args:
        rows: as read after the step (db/reports/outcomes.py); none if they are unknown.
        waits_in: the states in which a row waits for another attempt at this step; of a poll, if it failed.
    """
    by_id = {row["id"]: row for row in rows if row["dead_letter_id"] is None}
    letters = {row["id"]: row for row in rows if row["dead_letter_id"] is not None}
    outcomes = []
    for lease, result in results:
        row, letter = by_id.get(lease.row_id), letters.pop(lease.row_id, None)
        name = row["name"] if row else f"{lease.table} {lease.row_id}"
        if result.state == "done" and letter:
            result = StepResult("dead", letter["reason"])
        elif result.state == "done" and not result.text:
            is_waiting = row is not None and row["state"] in waits_in and (step != "poll" or result.error is not None)
            text, run_at = _describe(row, seconds, result.error), row["run_at"] if row and is_waiting else None
            result = StepResult("retry" if is_waiting else "done", text, run_at)
        outcomes.append(_build(lease.row_id, lease.token, f"{step} {name}", result))
    for letter in letters.values():
        result = StepResult("dead", letter["reason"])
        outcomes.append(_build(letter["id"], letter["dead_letter_id"], f"{step} {letter['name']}", result))
    return outcomes


def _build(row_id: UUID, task_id: UUID, subject: str, result: StepResult) -> RowOutcome:
    when = f"; next attempt at {result.run_at:%X}" if result.run_at else ""
    text = to_storable(f"{subject}: {_redact(result.text)}{when}", MAX_CHARS)
    return RowOutcome(str(row_id), str(task_id), result.state, text, result.run_at)


def _redact(text: str) -> str:
    return _URL.sub(lambda match: logs.redact_url(match[0]), text)


def _describe(row: Row | None, seconds: float, error: MoorageError | None) -> str:
    if row is None:
        return f"done in {seconds:.1f} s"
    reason = f": {row['reason'] or error}" if row["reason"] or error else ""
    file = f" {row['file']}" if row["state"] == "kept" else ""
    return f"{row['state']}{file} in {seconds:.1f} s{reason}"


def report(outcomes: Sequence[RowOutcome], row_id: UUID) -> StepReport:
    """
    Return the result of a task whose row ended or was not claimed. Its state is that of the row it was woken for.

    Raises Retry if that row waits for its next attempt, RowFailed if it became a dead letter.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.row_id != str(row_id))
    own = ordered[0]
    if own.state == "dead":
        raise RowFailed(ordered)
    if own.state == "retry":
        raise Retry(exc=RowFailed(ordered), when=own.run_at)
    return StepReport(ordered)


class StepRequest(Request):
    """
    Sends one event for each claimed row: a batch, or an output more urgent than the named one, is shown as such.

    A task whose process died, or whose error is not recorded, is shown as RETRY: its row is tried again.
    """

    _eventer: Any  # untyped in Celery
    _error: BaseException | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request_dict["is_watched"] = self._is_watched()  # only then the rows are read again

    def _is_watched(self) -> bool:
        eventer = self._eventer
        return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        error = exc_info.exception
        while getattr(error, "exc", None) is not None:  # of Retry, and of what carries an error between processes
            error = error.exc
        self._error = error
        return super().on_failure(exc_info, *args, **kwargs)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 (Celery's name)
        if type not in _EVENTS.values() or not self._is_watched():
            super().send_event(type, **fields)
            return
        fields |= {"name": self.name, "traceback": None}  # Flower has no name if it did not see the task received
        if isinstance(self._error, RowFailed):
            known = self._error.outcomes
        else:
            known = parse_report(str(fields.get("result")))
            if type == "task-failed":
                type = "task-retried"  # noqa: A001
                fields["exception"] = f"{_redact(fields['exception'])[:MAX_CHARS]}; the row is tried again"
        if known:
            fields |= _build_fields(known[0])
        super().send_event(type, **fields)
        for other in known[1:]:
            self._eventer.send(_EVENTS[other.state], uuid=other.task_id, name=self.name, **_build_fields(other))


def _build_fields(outcome: RowOutcome) -> dict[str, Any]:
    return {"args": outcome.row_id, "kwargs": "{}", "result" if outcome.state == "done" else "exception": outcome.text}
