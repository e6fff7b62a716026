"""Ticks of sweeps: what is due is found by the statement that claims the slot."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from celery import Celery

from bench.round_trips import RoundTripCounter
from cli.commands.doctor import checks
from cli.commands.doctor import command as doctor
from db import ticks
from db.connection import connect
from embedded.stack import Stack
from moorage.model import Step
from tasks import step
from tasks.sweeps import dispatch, reconcile
from tests.integration import command_line as cli
from tests.integration import receiver_process as rp
from tests.integration.core import World, database_of, prediction, world
from tests.integration.worker_process import running_worker
from worker import boot, inspect_cluster, schedule, sweep_runner

WAKES = 2000


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "ticks")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def claim(at: World, sweep: str) -> list[str]:
    """Return what is due in a new tick."""
    at.conn.execute("DELETE FROM ticks")
    tick = ticks.claim_slot(at.deps.database, sweep, 1.0)
    assert tick is not None
    return tick.due


def run_tick(at: World, sweep: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a tick as a worker does; return its round trips."""
    monkeypatch.setattr(boot, "get_deps", lambda: at.deps)
    counter = RoundTripCounter()
    with counter.count(sweep, at.deps.database.connection().pgconn):
        sweep_runner.run_sweep(sweep, "node@test/1")
    return counter.total()


@pytest.mark.parametrize("sweep", ["dispatch", "reconcile", "discard"])
def test_a_tick_without_work_is_one_round_trip(at: World, sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle stack sent 43 statements a second, one for each table that might have had something to do."""
    at.keep_all(at.keeping([at.source.picture()], project_id="p", scene=1).job_id)
    at.conn.execute("DELETE FROM notifications")

    assert run_tick(at, sweep, monkeypatch) == 1

    (row,) = at.conn.execute("SELECT finished_at, result FROM ticks WHERE sweep = %s", (sweep,)).fetchall()
    assert row["finished_at"] is not None
    assert row["result"] == {}


def test_a_tick_with_work_records_what_it_did(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is read by `moorage status`."""
    at.delivered(prediction("p1", "processing"))
    monkeypatch.setattr(sweep_runner.publish, "read_queue_depth", lambda _queue: 0)
    monkeypatch.setattr(sweep_runner.publish, "send_wakes", len)

    run_tick(at, "dispatch", monkeypatch)

    result = at.one("SELECT result FROM ticks WHERE finished_at IS NOT NULL")
    assert {step: count for step, count in result.items() if step != "seconds"} == {"ingest": 1}


def test_reconcile_is_run_with_dispatch_once_in_its_period(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message of beat costs a worker as much as the sweep that it starts."""
    monkeypatch.setattr(boot, "get_deps", lambda: at.deps)
    monkeypatch.setattr(sweep_runner, "get_settings", lambda: at.deps.settings)
    monkeypatch.setattr(sweep_runner, "_claimed_at", dict[str, float]())
    ran: list[list[str]] = []

    for second in range(5):
        monkeypatch.setattr(sweep_runner.time, "monotonic", lambda: second)  # noqa: B023
        at.conn.execute("DELETE FROM ticks")
        sweep_runner.run_tick("dispatch", "node@test/1")
        ran.append([row["sweep"] for row in at.conn.execute("SELECT sweep FROM ticks ORDER BY 1").fetchall()])

    assert ran == [["dispatch", "reconcile"], ["dispatch"], ["dispatch", "reconcile"], ["dispatch"], *ran[:1]]


def test_reconcile_is_run_after_a_dispatch_that_failed(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases would not be released while dispatch has an error."""
    ran: list[str] = []

    def run(name: str, _actor: str) -> None:
        ran.append(name)
        if name == "dispatch":
            raise LookupError

    monkeypatch.setattr(sweep_runner, "get_settings", lambda: at.deps.settings)
    monkeypatch.setattr(sweep_runner, "_claimed_at", dict[str, float]())
    monkeypatch.setattr(sweep_runner, "run_sweep", run)

    with pytest.raises(LookupError):
        sweep_runner.run_tick("dispatch", "node@test/1")

    assert ran == ["dispatch", "reconcile"]


def make_planned(at: World) -> None:
    at.registered("p1")
    at.conn.execute("UPDATE predictions SET state = 'planned', run_at = moment(), external_id = NULL")


DUE_STEPS: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "ingest": (lambda at: at.delivered(prediction("p1", "processing")), {"ingest"}),
    "submit": (make_planned, {"submit", "generate"}),
    "poll": (lambda at: (at.registered("p1"), at.conn.execute("UPDATE predictions SET run_at = moment()")), {"poll"}),
    "keep": (lambda at: (at.keeping([at.source.picture()]), at.conn.execute("DELETE FROM notifications")), {"keep"}),
}


@pytest.mark.parametrize("kind", DUE_STEPS)
def test_dispatch_sees_what_is_due(at: World, kind: str) -> None:
    """A step that the statement forgets would never be woken again."""
    make, expected = DUE_STEPS[kind]
    make(at)

    assert set(claim(at, "dispatch")) == expected
    assert set(dispatch.STEPS) == set(ticks.DUE["dispatch"]) == set(get_args(Step)) - {"discard"}


DUE_REPAIRS: dict[str, tuple[str, set[str]]] = {
    "nothing": ("SELECT 1", set()),
    "clock": ("UPDATE events SET at = moment() + interval '1 hour'", {"clock"}),
    "leases": (
        "UPDATE outputs SET lease_token = gen_random_uuid(), leased_by = 'x', leased_until = moment() + '1 min'",
        {"leases"},
    ),
    "jobs": ("UPDATE jobs SET run_at = moment()", {"jobs"}),
    "documents": ("UPDATE projects SET document = '{}'", {"documents"}),
    "statuses": ("UPDATE projects SET status = 'assets_generated'", {"statuses"}),
}


@pytest.mark.parametrize("kind", DUE_REPAIRS)
def test_reconcile_sees_what_is_due(at: World, kind: str) -> None:
    """As above."""
    change, expected = DUE_REPAIRS[kind]
    at.keeping([at.source.picture()], project_id="p", scene=1)
    reconcile.reconcile(at.deps, "test", len, {"documents"})  # a new project's document is computed once

    at.conn.execute(change)  # type: ignore[arg-type]

    assert set(claim(at, "reconcile")) == expected
    assert {*DUE_REPAIRS} - {"nothing"} == {*ticks.DUE["reconcile"]}


def test_a_lock_on_the_ticks_ends_the_wait(at: World) -> None:
    """A statement that is its own transaction has the limits of the others."""
    with at.beside() as other:
        holder = other.database.connection()
        holder.execute("BEGIN; LOCK TABLE ticks")

        with pytest.raises(boot.Transient, match="locked by another transaction"):
            ticks.claim_slot(at.deps.database, "drain", 1.0)

        holder.execute("ROLLBACK")
    assert claim(at, "drain") == ["run"]


def test_a_connection_that_was_closed_is_opened_again(at: World) -> None:
    """PostgreSQL was restarted between two ticks."""
    pid = at.deps.database.connection().info.backend_pid
    at.conn.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    assert claim(at, "drain") == ["run"]


def test_rows_that_are_locked_do_not_hold_up_dispatch(at: World, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty jobs whose project a session had locked took a third of a second each, in one run."""
    for number in range(4):
        at.keep_all(at.keeping([at.source.picture()], project_id=f"p{number}", scene=1).job_id)
    at.conn.execute("UPDATE projects SET status = 'open'")

    errors: list[str] = []
    monkeypatch.setattr(step.log, "error", lambda event, **_: errors.append(event))

    with contextlib.closing(connect(url)) as holder:
        holder.execute("BEGIN; UPDATE projects SET owner = owner")
        reconcile.reconcile(at.deps, "test", len, {"statuses"})
        holder.execute("ROLLBACK")
    reconcile.reconcile(at.deps, "test", len, {"statuses"})

    assert errors == ["project.status_failed"] * reconcile.MAX_LOCKED
    assert at.one("SELECT count(*) FROM projects WHERE status = 'open'") == 0


def test_dispatch_and_reconcile_have_a_queue_of_their_own(at: World) -> None:
    """They are prompt; the others use storage, or take minutes, for which retries and polls must not wait."""
    entries = schedule.build_beat_schedule(at.deps.settings).values()

    by_queue = {entry["args"][0]: entry["options"]["queue"] for entry in entries}
    assert {name for name, queue in by_queue.items() if queue == "sweeps"} == {"dispatch"}  # with reconcile
    assert set(by_queue.values()) == {"sweeps", "quick"}
    # Celery compares them with the worker's clock: with less, a worker discards each tick of a beat that is behind.
    assert min(entry["options"]["expires"] for entry in entries) >= 2 * checks.CLOCK_SECONDS


def test_dispatch_does_not_wait_behind_webhooks(stack: Stack, url: str, at: World) -> None:
    """In a burst of 1,000 webhooks it ran once in ten seconds."""
    broker = stack.valkey.url(14)
    env = cli.environment(stack, url, CELERY_BROKER_URL=broker)
    (entry,) = [e for e in schedule.build_beat_schedule(at.deps.settings).values() if e["args"] == ["dispatch"]]
    with Celery(broker=broker, set_as_current=False) as app, app.connection_for_write() as conn:
        client: Any = conn.default_channel.client
        client.lpush("quick", *["{}"] * WAKES)

        with running_worker(env, "-Q", entry["options"]["queue"], "-n", "sweeps@here"):
            for number in range(1, 4):
                app.send_task(entry["task"], args=entry["args"], queue=entry["options"]["queue"])
                rp.until(lambda number=number: at.one("SELECT count(*) FROM ticks") >= number or None, seconds=120)
                at.conn.execute("UPDATE ticks SET slot = slot + 1000 * %s", (number,))  # the next slot is free

        assert client.llen("quick") == WAKES
        client.delete("quick")


def test_doctor_names_a_queue_without_a_worker(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade `-Q quick` and `-Q keep` leave the queue of the sweeps to nobody."""
    consumers = {"a@here": ["quick"], "b@here": ["keep"]}
    monkeypatch.setattr(inspect_cluster, "list_consumers", lambda: consumers)
    monkeypatch.setattr(inspect_cluster, "read_queue_depths", lambda: {"quick": 0, "keep": 0, "sweeps": 0})
    monkeypatch.setattr(inspect_cluster, "read_pool_sizes", dict)
    monkeypatch.setattr(boot, "get_deps", lambda: at.deps)

    failed = [result.what for result in doctor._check_processes() if result.level == "fail"]

    assert "queue sweeps has 0 wakes and no worker that answers" in failed
    assert inspect_cluster.count_consumers(consumers) == {"quick": 1, "keep": 1, "sweeps": 0}
