"""What a task reports of its rows, and the events that carry it to Flower."""

import contextlib
import pickle
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import Retry, WorkerLostError

from moorage.model import Lease
from worker import outcomes
from worker.outcomes import RowFailed, RowOutcome, StepReport, StepRequest, StepResult

AT = datetime(2026, 11, 29, 10, 22, 31, tzinfo=UTC)
ROW, TOKEN = UUID(int=7), UUID(int=8)
LEASE = Lease("outputs", ROW, TOKEN, "node/1", AT, 1, 1)
NAME = f"output 2 of job {UUID(int=9)}"


def outcome(number: int, state: Any = "done") -> RowOutcome:
    return RowOutcome(str(UUID(int=number)), f"lease-{number}", state, f"row {number}")


def build(result: StepResult, *rows: dict[str, Any] | None) -> RowOutcome:
    none = {"id": ROW, "name": NAME, "run_at": None, "reason": None, "file": None, "dead_letter_id": None}
    made = [none | row for row in rows if row]
    (built,) = outcomes.build_outcomes("keep", [(LEASE, result)], made, waits_in=("waiting",), seconds=0.41)
    return built


KEPT = {"state": "kept", "file": "png 18 kB"}
WAITING = {"state": "waiting", "run_at": AT, "reason": "files of another prediction are being stored"}
URL = "https://files.example/a.png"
TEXTS: dict[str, tuple[StepResult, dict[str, Any] | None, str, str]] = {
    "kept": (StepResult(), KEPT, "done", f"keep {NAME}: kept png 18 kB in 0.4 s"),
    "ended without a file": (
        StepResult(),
        {"state": "discarded", "reason": "its job failed"},
        "done",
        f"keep {NAME}: discarded in 0.4 s: its job failed",
    ),
    "postponed by the step itself": (
        StepResult(),
        WAITING,
        "retry",
        f"keep {NAME}: waiting in 0.4 s: files of another prediction are being stored; next attempt at 10:22:31",
    ),
    "a retry, of a row that another worker has kept since": (
        StepResult("retry", f"DOWNLOAD_FAILED: 503 for {URL}?X-Amz-Signature=abc#frag", AT),
        KEPT,
        "retry",
        f"keep {NAME}: DOWNLOAD_FAILED: 503 for {URL}; next attempt at 10:22:31",
    ),
    "a dead letter": (
        StepResult("dead", "VALIDATION_FAILED: redis://:secret@broker:6379/0 \x00"),
        {"state": "dead"},
        "dead",
        f"keep {NAME}: VALIDATION_FAILED: redis://broker:6379/0 \\x00",
    ),
    "a lost lease": (StepResult(text="its lease was lost"), WAITING, "done", f"keep {NAME}: its lease was lost"),
    "an unreadable row": (StepResult(), None, "done", f"keep outputs {ROW}: done in 0.4 s"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_the_outcome_of_a_row(case: str) -> None:
    """What the step decided comes first: the row may have been claimed again."""
    result, row, state, text = TEXTS[case]

    assert build(result, row) == RowOutcome(str(ROW), str(TOKEN), state, text, AT if "next attempt" in text else None)


def test_a_dead_letter_that_the_step_wrote_is_an_outcome() -> None:
    """Of its own row (a poll that finds it lost), or of another one of its job (a file that it refuses)."""
    letter = {"state": "dead", "reason": "TIMED_OUT: lost", "dead_letter_id": UUID(int=5)}
    assert build(StepResult(), KEPT, letter).state == "dead"

    rows = [{**KEPT, "id": ROW, "name": NAME, "reason": None, "dead_letter_id": None}]
    rows += [{**letter, "id": UUID(int=6), "name": "output 3 of job 0"}]
    both = outcomes.build_outcomes("keep", [(LEASE, StepResult())], rows, waits_in=(), seconds=0.41)

    assert both[1] == RowOutcome(str(UUID(int=6)), str(UUID(int=5)), "dead", "keep output 3 of job 0: TIMED_OUT: lost")
    assert both[0].state == "done"


def test_a_long_reason_is_cut() -> None:
    """Flower shows a line for each task."""
    assert len(build(StepResult("dead", "x" * 9000), None).text) == outcomes.MAX_CHARS


def test_the_named_row_decides_the_state_of_the_task() -> None:
    """A batch must not hide a dead letter behind others that ended well, nor the other way round."""
    rows = [outcome(1), outcome(2, "dead"), outcome(3, "retry")]

    report = outcomes.report(rows, UUID(int=1))
    assert outcomes.parse_report(repr(report)) == rows
    with pytest.raises(RowFailed, match=r"^row 2$") as dead:
        outcomes.report(rows, UUID(int=2))
    with pytest.raises(Retry) as retry:
        outcomes.report(rows, UUID(int=3))

    for error in (dead.value, retry.value.exc):
        copied = pickle.loads(pickle.dumps(error))  # as between the processes of a worker
        assert isinstance(copied, RowFailed)
        assert sorted(copied.outcomes, key=lambda o: o.row_id) == rows
        assert repr(copied) == copied.outcomes[0].text
    assert pickle.loads(pickle.dumps(retry.value)).exc.outcomes[0] == rows[2]


class Eventer:
    """Records what Celery's dispatcher would send."""

    enabled = True

    def __init__(self, *groups: str) -> None:
        self.groups, self.sent = set(groups), list[tuple[str, dict[str, Any]]]()

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


def request(eventer: Eventer) -> Any:
    """Return a request as Celery builds it, without the worker around it."""
    made: Any = StepRequest.__new__(StepRequest)
    made._eventer, made._task, made.id, made.name = eventer, SimpleNamespace(send_events=True), "task", "moorage.ingest"
    return made


def fail(made: Any, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand an error to the request as the pool does; Celery then sends its event."""
    kind = "task-retried" if isinstance(error, Retry) else "task-failed"
    celerys = StepRequest.__mro__[1]
    monkeypatch.setattr(celerys, "on_failure", lambda self, *_: self.send_event(kind, exception="e", traceback="t"))
    with contextlib.suppress(type(error)):
        try:
            raise error
        finally:
            made.on_failure(ExceptionInfo())


def events(eventer: Eventer) -> list[tuple[str, str, str, Any]]:
    """Return type, task, row and text of each event."""
    return [(kind, f["uuid"], f.get("args"), f.get("result") or f.get("exception")) for kind, f in eventer.sent]


def test_each_row_of_a_batch_has_an_event() -> None:
    """Flower's counters then count rows."""
    eventer = Eventer("worker", "task")
    report = repr(StepReport([outcome(1), outcome(2, "dead"), outcome(3, "retry")]))

    request(eventer).send_event("task-succeeded", result=report, runtime=0.1)

    assert events(eventer) == [
        ("task-succeeded", "task", str(UUID(int=1)), "row 1"),
        ("task-failed", "lease-2", str(UUID(int=2)), "row 2"),
        ("task-retried", "lease-3", str(UUID(int=3)), "row 3"),
    ]
    assert {fields["name"] for _, fields in eventer.sent} == {"moorage.ingest"}


def test_a_failure_carries_its_row_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The category and the reason are what an operator reads."""
    for state, kind in (("dead", "task-failed"), ("retry", "task-retried")):
        eventer, failed = Eventer(), RowFailed([outcome(1, state), outcome(2)])

        fail(request(eventer), failed if state == "dead" else Retry(exc=failed, when=AT), monkeypatch)

        assert events(eventer) == [
            (kind, "task", str(UUID(int=1)), "row 1"),
            ("task-succeeded", "lease-2", str(UUID(int=2)), "row 2"),
        ]
        assert eventer.sent[0][1]["traceback"] is None


@pytest.mark.parametrize("error", [WorkerLostError("killed"), RuntimeError("a bug"), MemoryError()])
def test_a_task_without_a_recorded_failure_is_no_failure(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is released and tried again: no dead letter, no FAILURE."""
    eventer = Eventer("task")

    fail(request(eventer), error, monkeypatch)

    assert [(kind, fields["uuid"]) for kind, fields in eventer.sent] == [("task-retried", "task")]


def test_an_unrecorded_failure_shows_no_secret() -> None:
    """Flower shows the text of an exception that nothing of ours has built."""
    eventer = Eventer("task")

    request(eventer).send_event("task-failed", exception=f"KeyError('{URL}?X-Amz-Signature=abc')", traceback="t")

    assert events(eventer) == [("task-retried", "task", None, f"KeyError('{URL}'); the row is tried again")]


def test_events_are_sent_only_while_someone_listens() -> None:
    """Without Flower the rows are not read again."""
    assert not request(Eventer("worker"))._is_watched()
    assert request(Eventer("worker", "task"))._is_watched()
    assert request(Eventer())._is_watched()  # celery worker -E
