"""Recovery times of a drill are measured from rows: which rows show a recovery, and which do not."""

from collections.abc import Iterator
from typing import Any, LiteralString

import pytest

from db import leases
from db.connection import Connection
from simulation.chaos.faults import KINDS
from simulation.chaos.recovery import RecoveryMonitor
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world


@pytest.fixture
def recovery(database_url: str) -> Iterator[RecoveryMonitor]:
    monitor = RecoveryMonitor(database_url)
    yield monitor
    monitor.close()


def measure(recovery: RecoveryMonitor, kind: str, victim: str = "") -> None:
    probe = KINDS[kind].probe
    assert probe is not None
    recovery.measure_probe(kind, probe, victim)


def create_waiting_rows(deps: Deps, conn: Connection) -> None:
    """Create a running prediction, a new delivery, and a waiting output."""
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
    ("kind", "victim", "unrelated", "recovering"),
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
def test_a_recovery_ends_when_the_broken_component_serves_again(
    deps: Deps,
    conn: Connection,
    recovery: RecoveryMonitor,
    kind: str,
    victim: str,
    unrelated: list[tuple[LiteralString, tuple[str, ...]]],
    recovering: tuple[LiteralString, tuple[str, ...]],
) -> None:
    """Work that does not need the broken component shows nothing about it."""
    create_waiting_rows(deps, conn)
    measure(recovery, kind, victim)
    recovery.check()

    for statement, args in unrelated:
        conn.execute(statement, args)
    recovery.check()
    before = dict(recovery.seconds)
    conn.execute(*recovering)
    recovery.check()

    assert before == {}
    assert list(recovery.seconds) == [kind]
    assert recovery.unrecovered == []


def test_work_in_flight_does_not_show_that_the_broker_has_recovered(
    deps: Deps, conn: Connection, recovery: RecoveryMonitor
) -> None:
    """A worker finishes claimed work without the broker."""
    create_waiting_rows(deps, conn)
    row = conn.execute("SELECT id FROM outputs WHERE idx = 7").fetchone()
    assert row is not None
    assert leases.claim(conn, "keep", row["id"], leased_by="keep1@host/task", lease_seconds=30, max_crashes=5)
    measure(recovery, "broker killed")
    recovery.check()

    conn.execute(EDGE, KEPT)
    recovery.check()
    before = dict(recovery.seconds)
    conn.execute(EDGE, ("output", "kept", "keep1@host/another task"))
    recovery.check()

    assert before == {}
    assert list(recovery.seconds) == ["broker killed"]


@pytest.mark.parametrize("kind", ["worker killed", "pool child killed"])
def test_a_worker_is_recovered_when_its_rows_are_resumed(
    deps: Deps, conn: Connection, recovery: RecoveryMonitor, kind: str
) -> None:
    """A killed worker's rows wait for the end of its lease; those of a pool child are released by its worker."""
    create_waiting_rows(deps, conn)
    row = conn.execute("SELECT id FROM outputs WHERE idx = 7").fetchone()
    assert row is not None
    arguments: Any = {"lease_seconds": 30, "max_crashes": 5}
    assert leases.claim(conn, "keep", row["id"], leased_by="keep1@host/task", **arguments)
    recovery.read_state()
    recovery.measure_leases(kind, "keep1")
    recovery.check()
    before = dict(recovery.seconds)

    conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, kind, actor)"
        " SELECT 'output', id, job_id, 'waiting', 'waiting', 'worker_died', 'keep1@host/task' FROM outputs"
        " WHERE idx = 7"
    )
    conn.execute("UPDATE outputs SET lease_token = NULL, leased_by = NULL, leased_until = NULL WHERE idx = 7")
    recovery.check()
    released = dict(recovery.seconds)
    assert leases.claim(conn, "keep", row["id"], leased_by="keep2@host/task", **arguments)
    recovery.check()

    assert (before, released) == ({}, {})
    assert list(recovery.seconds) == [kind]


@pytest.mark.parametrize("kind", ["storage killed", "receiver killed", "PostgreSQL cut", "broker emptied"])
def test_without_waiting_work_nothing_is_measured(
    deps: Deps, conn: Connection, recovery: RecoveryMonitor, kind: str
) -> None:
    """The time until the next request is not a recovery time."""
    world.kept(deps)
    conn.execute("UPDATE predictions SET state = 'succeeded', run_at = NULL WHERE state = 'running'")
    measure(recovery, kind)

    recovery.check()
    conn.execute(EDGE, KEPT)
    conn.execute(WEBHOOK)
    recovery.check()

    assert recovery.seconds == {}


def test_a_disturbed_recovery_is_reported_separately(deps: Deps, conn: Connection, recovery: RecoveryMonitor) -> None:
    """Its time is that of two faults."""
    create_waiting_rows(deps, conn)
    measure(recovery, "storage killed")
    recovery.check()

    recovery.mark_disturbed(leases_only=True)  # it does not depend on a lease
    recovery.mark_disturbed()
    conn.execute(EDGE, KEPT)
    recovery.check()

    assert list(recovery.seconds) == ["storage killed, then disturbed"]
