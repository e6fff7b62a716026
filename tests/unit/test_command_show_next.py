"""What `moorage show` says of the future, from the columns of a row."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from db.reports import records

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def output(**columns: Any) -> dict[str, Any]:
    row = {"path": "output[1]", "state": "waiting", "attempt": 2, "run_at": later(12), "leased_by": None}
    return {**row, "expires_at": None, **columns}


def prediction(**columns: Any) -> dict[str, Any]:
    row = {"id": "p", "external_id": "abc", "state": "running", "polls": 1, "run_at": later(30), "leased_by": None}
    return {**row, "deadline_at": later(3600), **columns}


@pytest.mark.parametrize(
    ("subject", "row", "action"),
    [
        ("output", output(), "output output[1]: attempt 3 in 12 s"),
        ("output", output(run_at=later(-1)), "output output[1]: attempt 3 now"),
        ("output", output(expires_at=later(600)), "output output[1]: attempt 3 in 12 s, its URL expires in 10 min"),
        (
            "output",
            output(leased_by="n/t", leased_until=later(20)),
            "output output[1]: attempt 2 runs at n/t, its lease ends in 20 s",
        ),
        ("output", output(state="discarding"), "output output[1]: its objects are deleted in 12 s"),
        ("prediction", prediction(), "prediction abc: poll 2 in 30 s, its deadline is in 60 min"),
        (
            "prediction",
            prediction(state="abandoned"),
            "prediction abc: a late result still counts, next poll in 30 s",
        ),
        (
            "delivery",
            {"state": "unmatched", "run_at": later(5), "unmatched_until": later(86400 * 3), "leased_by": None},
            "delivery: matched again in 5 s, given up in 3 d",
        ),
        ("job", {"state": "open", "deadline_at": later(90)}, "job: waits for files, its deadline is in 90 s"),
        (
            "job",
            {"state": "keeping", "run_at": later(90)},
            "job: ends with its last file; recounted in 90 s",
        ),
    ],
)
def test_the_next_action_has_a_time(subject: str, row: dict[str, Any], action: str) -> None:
    """An operator sees what a row waits for, and how long."""
    assert records.describe_next_actions([(subject, row)], [], NOW) == [action]


def test_an_open_dead_letter_names_the_command() -> None:
    """The next action is an operator's; the command can be copied."""
    letters = [{"id": "d1", "state": "open"}, {"id": "d2", "state": "replayed"}]

    actions = records.describe_next_actions([("output", output(state="dead"))], letters, NOW)

    assert actions == ["dead letter: moorage dead replay d1"]


def test_an_ended_record_has_no_next_action() -> None:
    """The line says so: no output could mean that something was missed."""
    assert records.describe_next_actions([("output", output(state="kept"))], [], NOW) == ["nothing: it has ended"]
