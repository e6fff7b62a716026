"""The drill's own connection, and its exit status."""

import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cli.commands import drill
from moorage.errors import DatabaseUnavailable


@pytest.fixture
def waiting(monkeypatch):
    """Return a drill whose PostgreSQL refuses two connections, and the steps of its schedule."""
    answers = iter([DatabaseUnavailable("starting up"), DatabaseUnavailable("starting up"), "connection"])
    steps: list[bool] = []

    def connect(_url: str, *, name: str) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(drill, "connect", connect)
    running = drill.Drill.__new__(drill.Drill)
    running._targets = SimpleNamespace(database_url="postgresql://")
    running._schedule = SimpleNamespace(step=lambda *, injects: steps.append(injects))
    return running, steps


def test_the_account_waits_for_a_postgresql_that_recovers(waiting):
    """The last fault may have killed it: the drill ended with an error instead of a verdict."""
    running, steps = waiting

    assert running._connect(time.monotonic() + 60) == "connection"
    assert steps == [False, False, False]


def test_a_postgresql_that_stays_unavailable_ends_the_drill(waiting):
    """Without a limit it would wait without end."""
    running, _ = waiting

    with pytest.raises(DatabaseUnavailable):
        running._connect(time.monotonic() - 1)


def test_the_help_fits_80_columns() -> None:
    """Forms are listed without being wrapped."""
    assert max(map(len, CliRunner().invoke(drill.drill, ["--help"]).output.splitlines())) <= 80
