"""The bench of the receiver, in its smallest form: counts, not times."""

from pathlib import Path

import psycopg

from bench import processes
from bench import receiver as bench
from embedded.stack import Stack


def test_the_bench_reads_every_accepted_id_back(stack: Stack, database_url: str, tmp_path: Path) -> None:
    """A fast receiver that loses a webhook is worth nothing, and a bench that does not notice even less."""
    own = next(item for item in bench.list_candidates(database_url, stack.valkey.url(7), "") if item.name == "moorage")
    accepted: list[list[str]] = []

    with bench.running(own, tmp_path / "log") as (port, pid):
        for rate in (0.0, 200.0):
            result = bench.send_load(port, tmp_path, run=f"r{rate:.0f}", count=1000, seconds=0.5, rate=rate)
            accepted += result["rows"]
            assert result["statuses"] == {"202": result["accepted"]}
        assert processes.cpu_seconds(pid) > 0
    found = bench.check_recorded(database_url, accepted, "msg_r0_")
    with psycopg.connect(database_url) as conn:
        conn.execute("DELETE FROM deliveries WHERE webhook_id = %s", (accepted[0][0],))

    assert found["read_back"] == len(accepted) > bench.CONNECTIONS
    assert found["missing"] == 0
    assert found["rows_per_commit"] > 2
    assert bench.check_recorded(database_url, accepted, "msg_r0_")["missing"] == 1
