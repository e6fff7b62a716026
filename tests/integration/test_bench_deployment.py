"""The benches of a complete deployment, in their smallest form: counts, not times."""

from collections.abc import Iterator

import pytest

from bench import burst, deployment, latency, pipeline, processes, scale, statements
from bench.deployment import Bench, Servers
from embedded.stack import Stack
from tests.integration.core import world

OUTPUTS = 6


@pytest.fixture(scope="module")
def bench(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Run moorage once for all benches. The servers of the tests flush nothing, and times do not matter here."""
    with pytest.MonkeyPatch.context() as patch, deployment.serve_files(["jpeg"]) as files_port:
        patch.setattr(deployment, "require_durable", lambda conn: None)
        patch.setattr(processes, "await_idle", lambda pids, **limits: None)
        with deployment.start(Servers(stack, files_port, tmp_path_factory.mktemp("bench"))) as running:
            yield running


def test_the_pipeline_reads_every_output_back(bench: Bench) -> None:
    """A bench that counts what was not stored measures nothing."""
    figures = bench.publish(OUTPUTS)

    assert figures["outputs"] == OUTPUTS
    assert figures["claims"] >= 1
    assert {"keep1", "quick"} <= set(bench.workers)
    assert 0 < figures["cpu_seconds"] <= sum(figures["cpu_by_process"].values())
    table = pipeline.build_table([{pipeline.FLOOR: {"jpeg": figures}, "moorage": {"jpeg": figures}}], ["jpeg"])
    assert [row[3] for row in table.rows] == ["1.00 x", ""]


def test_a_render_that_is_missing_ends_the_bench(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of outputs that were never published would be a figure of nothing."""
    monkeypatch.setattr(deployment, "DEADLINE_SECONDS", 0.0)

    with pytest.raises(SystemExit, match="publishing all renders"):
        bench.await_published(bench.create_ids(1))


def test_a_webhook_is_timed_to_its_render(bench: Bench) -> None:
    """Each time belongs to one render."""
    assert all(milliseconds > 0 for milliseconds in latency.measure_bench(bench, 1, warm_up=0))


def test_a_burst_reads_every_delivery_back(bench: Bench) -> None:
    """Registrations are copied in SQL, so that thousands cost nothing."""
    result = burst.measure(bench, 20)

    assert result["webhooks"] == 20
    assert set(result["gaps"]) == {"dispatch", "reconcile"}


def test_the_longest_gap_includes_the_time_since_the_last_tick() -> None:
    """A sweep that stopped in mid-run has no next tick."""
    assert burst.find_longest_gap([1.0, 2.0, 5.0], 6.0) == 3
    assert burst.find_longest_gap([1.0, 2.0], 6.0) == 4
    assert burst.find_longest_gap([], 6.0) == float("inf")


def test_the_scale_states_the_cost_of_an_output(bench: Bench) -> None:
    """WAL, commits and CPU are those of one output."""
    result = scale.measure(bench, bench.local.port, OUTPUTS, warm_up=0)

    assert result["wal_bytes"] > 1000
    assert result["sessions"] > 2
    assert {"CPU of keep1", "CPU of postgres", "WAL"} <= {name for name, _ in scale.build_cost(result).rows}
    assert scale.build_rates({"one": {**result, "pss_bytes": 2**20}}).rows[0][2] == "1.00 x"


def test_statements_are_counted_with_requests_and_events(stack: Stack, database_url: str) -> None:
    """These counts do not depend on the machine: a statement or a request too many shows."""
    with world(stack, database_url) as at:
        result = statements.measure(at.deps, at.conn, [at.source.picture(1)], jobs=2)

    assert result["claims"] == 1
    assert result["requests"] == 3
    assert result["events"] == 10
    assert result["per_output"] == sum(result["round_trips"].values())
