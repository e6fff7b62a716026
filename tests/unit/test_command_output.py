"""What commands print: safe for a terminal, readable for a person, whole for a program."""

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from cli import console, main
from db.audit.check import Check
from moorage.errors import MoorageError
from tasks.audit.findings import Finding

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_providers_words_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """An error text may hold escape sequences that hide what stands above it."""
    console.print_parts("line \x1b[2J\r\u202eend", console.build_table("T", ("c",), [("\x1b]0;owned\x07",)]))

    shown = capsys.readouterr().out

    assert set(shown) & {"\x1b", "\r", "\u202e", "\x07"} == set()
    assert "\\x1b[2J\\r\\u202eend" in shown


def test_an_error_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may name what a provider or a server answered; of several lines each is one."""

    def fail(*_args: object, **_options: object) -> None:
        raise MoorageError("replicate: 400 \r\u202eend\nsecond line")

    monkeypatch.setattr(main.cli, "main", fail)
    with pytest.raises(SystemExit):
        main.main([])

    assert capsys.readouterr().err == "moorage: replicate: 400 \\r\\u202eend\nsecond line\n"


def test_words_in_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """`output[2]` must be shown as it is."""
    console.print_parts("output[2] [bold]x[/bold]", console.build_table("T", ("c",), [("output[red]",)]))

    shown = capsys.readouterr().out

    assert "output[2] [bold]x[/bold]" in shown
    assert "output[red]" in shown


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.25, "250 ms"), (12.4, "12 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (86400 * 9, "9 d")],
)
def test_a_time_is_told_in_its_largest_unit(seconds: float, told: str) -> None:
    """518400 s says nothing to anybody."""
    assert console.format_duration(seconds) == told


@pytest.mark.parametrize(("at", "told"), [(None, "never"), (-5, "5 s ago"), (5, "in 5 s")])
def test_a_moment_is_told_from_now(at: float | None, told: str) -> None:
    """Past and future must not be confused."""
    moment = None if at is None else NOW + timedelta(seconds=at)

    assert console.format_age(moment, NOW) == told


def test_json_holds_ids_times_and_dataclasses(capsys: pytest.CaptureFixture[str]) -> None:
    """A program reads what a person sees."""
    finding = Finding(4, "output", "x", "missing", Check(4, "objects", "missing"))
    console.print_json({"id": uuid.UUID(int=1), "at": NOW, "finding": finding})

    read = json.loads(capsys.readouterr().out)

    assert read["at"] == "2026-01-01T00:00:00+00:00"
    assert read["id"] == "00000000-0000-0000-0000-000000000001"
    assert read["finding"]["what"] == "missing"
