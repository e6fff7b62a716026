"""Beat's first ticks, and its end."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.apps.beat import Beat
from celery.beat import Service
from kombu import Connection

from moorage.settings import Settings
from worker import bootsteps, schedule
from worker.beat import Scheduler

ANY = Settings(_env_file=None, database_url="postgresql://u:p@127.0.0.1/d", broker_url="redis://127.0.0.1/0")


def test_periodic_sweeps_are_due_when_beat_starts() -> None:
    """With a period to wait first, `moorage status` called `drain` and `counts` late right after a restart."""
    app = Celery("tests")
    app.conf.beat_schedule = schedule.build_beat_schedule(ANY)

    due = {entry.args[0] for entry in Scheduler(app).schedule.values() if entry.args and entry.is_due().is_due}

    assert due == {*schedule.sweep_periods(ANY)} - {"reconcile"}  # with dispatch


def test_beat_waits_until_a_tick_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """It woke 10 ms early and asked until then, without a pause, whether the tick was due: most of its CPU time."""
    app, sent, asked = Celery("tests", broker="memory://"), list[str](), list[str]()
    app.conf.beat_schedule = {"x": {"task": "x", "schedule": 0.05, "args": ["x"]}}
    monkeypatch.setattr(Scheduler, "apply_entry", lambda _self, entry, **_: sent.append(entry.name))
    is_due = Scheduler.is_due
    monkeypatch.setattr(Scheduler, "is_due", lambda self, entry: asked.append(entry.name) or is_due(self, entry))

    scheduler = Scheduler(app)
    while len(sent) < 5:
        time.sleep(max(scheduler.tick(), 0.0))

    assert len(asked) <= 3 * len(sent)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_delays_no_tick(
    hours: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Set back by an hour, beat sent no tick for an hour and logged nothing: the times of the next ones stayed."""
    app, sent, now = Celery("tests", broker="memory://"), list[str](), datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
    app.conf.beat_schedule = schedule.build_beat_schedule(ANY)
    monkeypatch.setattr(Scheduler, "apply_entry", lambda _self, entry, **_: sent.append(entry.args[0]))
    monkeypatch.setattr(app, "now", lambda: now)
    scheduler = Scheduler(app)
    first = send_due(scheduler, sent)
    now += timedelta(hours=hours)

    again = send_due(scheduler, sent)

    assert [sweep for sweep in again if sweep != "usage"] == first  # each of them once; usage is hourly
    assert max(entry.last_run_at for entry in scheduler.schedule.values()) <= now  # nor do the nightly ones wait
    assert [record.getMessage() for record in caplog.records] == ["beat.clock_set_back"] * (hours < 0)


def send_due(scheduler: Scheduler, sent: list[str]) -> list[str]:
    """Send what is due; returns it."""
    sent.clear()
    while scheduler.tick() == 0:
        pass
    return sorted(sent)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_beat_even_if_another_error_replaces_the_exit(
    handlers: None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client of the broker that it interrupted failed while it cleaned up: beat ticked on, and had to be killed."""
    app, sent = Celery("tests", broker="memory://"), []
    app.conf.update(beat_schedule=schedule.build_beat_schedule(ANY), beat_scheduler="worker.beat:Scheduler")

    def send_task(*_: object, **__: Any) -> None:
        sent.append(1)
        if len(sent) > 1:
            pytest.fail("it ticks on")
        try:
            os.kill(os.getpid(), number)
        finally:
            raise ConnectionError("the connection was closed")

    monkeypatch.setattr(Scheduler, "send_task", send_task)
    service = Service(app, scheduler_cls=Scheduler, remote_control=False)
    Beat(app=app).install_sync_handler(service)  # as `celery beat` does before it starts
    service.start()

    assert len(sent) == 1


def test_beat_without_its_broker_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes killed it after a minute. A beat that hangs reaches neither line."""
    app, touched, refused = Celery("tests", broker="memory://"), list[str](), [ConnectionError("refused")]
    app.conf.beat_schedule = {"x": {"task": "x", "schedule": 0.05, "args": ["x"]}}
    monkeypatch.setattr(bootsteps, "touch_liveness_file", lambda: touched.append("touched"))

    def connect(_self: object) -> object:
        if refused:
            raise refused.pop()
        return object()

    def send_task(*_: object, **__: object) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(Connection, "_connection_factory", connect)
    monkeypatch.setattr(Connection, "recoverable_connection_errors", (ConnectionError,))
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _seconds: None)
    monkeypatch.setattr(Scheduler, "send_task", send_task)
    scheduler = Scheduler(app)
    scheduler._ensure_connected()
    assert len(touched) >= 2  # each second: the pauses grow to half a minute
    touched.clear()
    scheduler.apply_entry(scheduler.schedule["x"])

    assert touched == ["touched"]
