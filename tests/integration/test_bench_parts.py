"""Parts of the benches, and the candidates that moorage is compared with, in their smallest form: counts, not times."""

from pathlib import Path

import pytest
import redis

from bench import backlog, deployment, floor, idle, memory, pipeline, sweeps
from db.connection import connect
from embedded.stack import Stack
from tests.integration.core import world
from worker import boot, sweep_runner


def test_ticks_and_claims_take_due_rows(stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that finds nothing is faster than one that takes a row: the bench notices."""
    monkeypatch.setattr(sweep_runner, "DRAIN_SHARE", 0.0)
    monkeypatch.setattr(sweep_runner.publish, "read_queue_depth", lambda _queue: 0)
    monkeypatch.setattr(sweep_runner.publish, "send_wakes", len)

    with world(stack, database_url) as at, redis.Redis.from_url(stack.valkey.url(13)) as broker:
        monkeypatch.setattr(boot, "get_deps", lambda: at.deps)
        none_due = sweeps.measure(at.deps, at.conn, broker, 1)
        backlog.fill(at.conn, 100)
        due = sweeps.measure(at.deps, at.conn, broker, 2)
        monkeypatch.setattr(sweeps.step_runner, "_claim", lambda *_: ([], False))
        with pytest.raises(SystemExit, match="the claim of keep returned 0 rows"):
            sweeps.time_claim(at.deps, at.conn, "keep")
        at.conn.execute("TRUNCATE jobs CASCADE")  # a backlog is not a state that steps lead to

    assert set(due) == set(none_due) == {*sweeps.SWEEPS, *(f"claim of {step}" for step in backlog.CLAIMS)}


def test_the_relay_of_the_idle_bench_counts_round_trips(database_url: str) -> None:
    relay = idle.CountingRelay(database_url)

    with connect(relay.url) as conn:
        started = relay.counts["round trips"]
        for _ in range(3):
            conn.execute("SELECT 1")

    assert relay.counts["round trips"] - started == 3


def test_the_memory_of_a_worker_is_measured_and_a_file_that_is_not_written_ends_the_bench() -> None:
    row = memory.measure("PNG RGB", 64, 64, memory._writer("RGB", "PNG"))

    assert (row[0], row[-1]) == ("PNG RGB", "kept 64 x 64")
    assert float(row[3]) > 20
    with pytest.raises(SystemExit, match="AVIF was not written"):
        memory.measure("AVIF", 64, 64, lambda *_: memory.os._exit(1))


def test_the_floor_stores_files(stack: Stack, database_url: str, tmp_path: Path) -> None:
    """Moorage is compared with it."""
    with world(stack, database_url):
        figures = floor.run(deployment.Servers(stack, 0, tmp_path), 2, ["jpeg"])

    assert figures["jpeg"]["outputs"] == len(figures["jpeg"]["times_ms"]) == 2
    assert figures["jpeg"]["cpu_seconds"] > 0


@pytest.mark.prove
@pytest.mark.skipif(not pipeline.list_available([pipeline.PEER]), reason="`make bench` installs the peers")
def test_the_peer_stores_files(stack: Stack, database_url: str, tmp_path: Path) -> None:
    """Its processes load Flask, Celery and boto3 five times: that takes as long as all other tests of this file."""
    with world(stack, database_url), deployment.serve_files(["jpeg"]) as files_port:
        figures = pipeline.measure_peer(deployment.Servers(stack, files_port, tmp_path), 1, ["jpeg"], children=1)

    assert figures["jpeg"]["statuses"] == {"202": 1}
    assert figures["jpeg"]["cpu_seconds"] > 0
