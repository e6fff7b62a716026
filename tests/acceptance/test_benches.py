"""The benches of a complete deployment, in their smallest form: counts, not times."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench import burst, deployment, latency, pipeline, processes, scale
from bench.deployment import Bench
from tests.acceptance.world import World

OUTPUTS = 2


@pytest.fixture
def bench(world: World, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Use the running system, whose times do not matter."""
    monkeypatch.setattr(processes, "await_idle", lambda pids, **limits: None)
    with (
        deployment.serve_files(["jpeg"], free_port),
        closing(deployment.connect_directly(world.local.stack)) as conn,
    ):
        yield Bench(world.local, free_port, conn, tmp_path, world.standin.secret)


def test_outputs_are_stored_counted_and_read_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of outputs that were never published would be a figure of nothing."""
    result = scale.measure(bench, bench.local.port, OUTPUTS, warm_up=0)

    assert result["outputs"] == OUTPUTS
    assert result["keep_runs"] >= 1
    assert {"keep1", "quick"} <= set(bench.workers)
    assert 0 < result["cpu_seconds"] <= sum(result["cpu_by_process"].values())
    table = pipeline.build_table([{pipeline.FLOOR: {"jpeg": result}, "moorage": {"jpeg": result}}], ["jpeg"])
    assert [row[3] for row in table.rows] == ["1.00 x", ""]
    assert result["wal_bytes"] > 1000
    assert result["sessions"] > 2
    assert {"CPU of keep1", "CPU of postgres", "WAL"} <= {name for name, _ in scale.build_cost(result).rows}
    assert scale.build_rates({"one": {**result, "pss_bytes": 2**20}}).rows[0][2] == "1.00 x"
    assert [row[0] for row in scale.build_growth(result).rows] == ["10,000", "100,000", "1,000,000", "10,000,000"]
    monkeypatch.setattr(deployment, "DEADLINE_SECONDS", 0.0)
    with pytest.raises(SystemExit, match="publishing all renders"):
        bench.await_published(bench.create_ids(1))


def test_webhooks_of_copied_registrations_are_ingested_and_timed(bench: Bench) -> None:
    """Registrations are copied in SQL, so that thousands cost nothing; each time belongs to one render."""
    result = burst.measure(bench, 3)

    assert result["webhooks"] == 3
    assert set(result["gaps"]) == {"dispatch", "reconcile"}
    assert all(milliseconds > 0 for milliseconds in latency.measure_bench(bench, 1, warm_up=0))
