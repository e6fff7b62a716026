"""What `moorage show` says of the future, from the columns of a row."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli.commands import show

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
    ("subject", "row", "told"),
    [
        ("output", output(), "output output[1]: attempt 3 in 12 s"),
        ("output", output(run_at=later(-1)), "output output[1]: attempt 3 now"),
        ("output", output(expires_at=later(600)), "output output[1]: attempt 3 in 12 s, its URL dies in 10 min"),
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
            "prediction abc: a late answer still counts, asked a last time in 30 s",
        ),
        (
            "delivery",
            {"state": "unmatched", "run_at": later(5), "unmatched_until": later(86400 * 3), "leased_by": None},
            "delivery: looked up again in 5 s, given up in 3 d",
        ),
        ("job", {"state": "open", "deadline_at": later(90)}, "job: waits for files, its deadline is in 90 s"),
        (
            "job",
            {"state": "keeping", "run_at": later(90)},
            "job: ends with its last file, which is counted again in 90 s",
        ),
    ],
)
def test_what_comes_next_is_told_with_its_time(subject: str, row: dict[str, Any], told: str) -> None:
    """Who waits wants to know for what and how long."""
    assert show.describe_next_actions([(subject, row)], [], NOW) == [told]


def test_an_open_dead_letter_names_the_command_that_helps() -> None:
    """The next step is a person's, and is ready to be pasted."""
    letters = [{"id": "d1", "state": "open"}, {"id": "d2", "state": "replayed"}]

    told = show.describe_next_actions([("output", output(state="dead"))], letters, NOW)

    assert told == ["dead letter d1 waits: moorage dead replay d1"]


def test_what_is_over_is_said_to_be_over() -> None:
    """Silence could mean that something was forgotten."""
    assert show.describe_next_actions([("output", output(state="kept"))], [], NOW) == ["nothing more: it is over"]
