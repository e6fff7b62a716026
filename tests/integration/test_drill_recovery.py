"""The recovery times of a drill are measured from the rows: what shows that a thing is back, and what does not."""

from collections.abc import Iterator
from typing import LiteralString

import pytest

from db import leases
from db.connection import Connection
from simulation.chaos.recovery import Recovery
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world


@pytest.fixture
def recovery(database_url: str) -> Iterator[Recovery]:
    made = Recovery(database_url)
    yield made
    made.close()


def waiting(deps: Deps, conn: Connection) -> None:
    """Give a prediction that runs, a delivery that is new, and an output that waits."""
    world.kept(deps)
    cli.register_one(deps, "runs")
    conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body_sha256) VALUES (gen_random_uuid(), 'x', 'y', '')"
    )
    conn.execute(
        "INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, state, run_at)"
        " SELECT gen_random_uuid(), job_id, prediction_id, 7, 'output[7]', 'url', 'waiting', moment() FROM outputs"
    )


EDGE: LiteralString = """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)
SELECT %s, id, job_id, 'waiting', %s, %s FROM outputs LIMIT 1
"""
KEPT = ("output", "kept", "keep1@host/task")
APPLIED = ("delivery", "applied", "quick@host/task")
WEBHOOK: LiteralString = """
INSERT INTO deliveries (id, provider, webhook_id, body_sha256)
VALUES ('ffffffff-ffff-7fff-bfff-ffffffffffff', 'x', 'z', '')
"""
TICK: LiteralString = "INSERT INTO ticks (sweep, slot) VALUES (%s, 5)"


@pytest.mark.parametrize(
    ("kind", "victim", "other", "shows"),
    [
        ("storage killed", "", [(EDGE, APPLIED)], (EDGE, KEPT)),
        ("storage stalled", "", [(EDGE, APPLIED)], (EDGE, KEPT)),
        ("disk full", "keep1", [(EDGE, ("output", "kept", "keep2@host/task"))], (EDGE, KEPT)),
        ("receiver killed", "", [(EDGE, APPLIED), (EDGE, KEPT)], (WEBHOOK, ())),
        ("PostgreSQL stalled", "", [], (EDGE, APPLIED)),
        ("broker stalled", "", [], (EDGE, APPLIED)),
        ("no beat", "", [(EDGE, KEPT), (TICK, ("drain",))], (TICK, ("dispatch",))),
    ],
)
def test_a_recovery_is_over_when_what_the_fault_took_serves_again(
    deps: Deps,
    conn: Connection,
    recovery: Recovery,
    kind: str,
    victim: str,
    other: list[tuple[LiteralString, tuple[str, ...]]],
    shows: tuple[LiteralString, tuple[str, ...]],
) -> None:
    """What goes on without the thing that was broken says nothing about it."""
    waiting(deps, conn)
    recovery.watch_need(kind, victim)
    recovery.look()

    for statement, args in other:
        conn.execute(statement, args)
    recovery.look()
    before = dict(recovery.seconds)
    conn.execute(*shows)
    recovery.look()

    assert before == {}
    assert list(recovery.seconds) == [kind]
    assert recovery.unrecovered == []


def test_work_that_was_under_way_does_not_show_that_the_broker_is_back(
    deps: Deps, conn: Connection, recovery: Recovery
) -> None:
    """A worker ends what it holds without its broker."""
    waiting(deps, conn)
    row = conn.execute("SELECT id FROM outputs WHERE idx = 7").fetchone()
    assert row is not None
    assert leases.claim(
        conn, "outputs", row["id"], states=["waiting"], leased_by="keep1@host/task", lease_seconds=30, max_crashes=5
    )
    recovery.watch_need("broker killed")
    recovery.look()

    conn.execute(EDGE, KEPT)
    recovery.look()
    before = dict(recovery.seconds)
    conn.execute(EDGE, ("output", "kept", "keep1@host/another task"))
    recovery.look()

    assert before == {}
    assert list(recovery.seconds) == ["broker killed"]


@pytest.mark.parametrize("kind", ["storage killed", "receiver killed", "PostgreSQL cut", "broker emptied"])
def test_where_nothing_waits_nothing_is_measured(deps: Deps, conn: Connection, recovery: Recovery, kind: str) -> None:
    """The time until somebody wants something is not a recovery, nor is none at all."""
    world.kept(deps)
    conn.execute("UPDATE predictions SET state = 'succeeded', run_at = NULL WHERE state = 'running'")
    recovery.watch_need(kind)

    recovery.look()
    conn.execute(EDGE, KEPT)
    conn.execute(WEBHOOK)
    recovery.look()

    assert recovery.seconds == {}


def test_a_disturbed_recovery_is_told_apart(deps: Deps, conn: Connection, recovery: Recovery) -> None:
    """Its time is that of two faults."""
    waiting(deps, conn)
    recovery.watch_need("storage killed")
    recovery.look()

    recovery.disturb(leases_only=True)  # it waits for no lease
    recovery.disturb()
    conn.execute(EDGE, KEPT)
    recovery.look()

    assert list(recovery.seconds) == ["storage killed, then disturbed"]
