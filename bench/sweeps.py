"""
Measure what ticks of the frequent sweeps, and claims, cost with a backlog that the workers cannot serve yet.

`make bench PART=sweeps`. Each tick starts with an empty queue, which dispatch fills once; without due rows the same run
is the floor. Nothing consumes the queues, so the wait for queues to drain is left out. A claim commits; its lease is
cleared after the clock has stopped.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import redis

from bench import backlog, deployment, results, round_trips, statements
from db import leases
from db.connection import Connection, fetch_all
from moorage.model import Lease, Step
from tasks.step import Deps
from worker import step_runner

SWEEPS: Final = ("dispatch", "reconcile")
RUNS: Final = 20

# One registered prediction has them all: dispatch reads no job.
ADD_DUE: Final = """
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, state, run_at, expires_at)
SELECT gen_random_uuid(), p.job_id, p.id, 10 + n, 'output[' || 10 + n || ']', 'url', 'http://127.0.0.1:9/' || n,
       'waiting', moment() - make_interval(secs => n * 0.01), moment() + make_interval(secs => 600 + n * 0.01)
  FROM generate_series(1, %(count)s) AS n, (SELECT id, job_id FROM predictions ORDER BY id LIMIT 1) p
"""


DUE: Final = """
SELECT id FROM {table} WHERE state = ANY(%(states)s) AND run_at <= moment() AND lease_token IS NULL
 ORDER BY id DESC LIMIT 1
"""
RELEASE: Final = f"UPDATE {{table}} SET {leases.CLEAR_LEASE}, attempt = attempt - 1 WHERE leased_by = %(leased_by)s"


def measure(deps: Deps, conn: Connection, broker: "redis.Redis", runs: int) -> dict[str, float]:
    """Return the median milliseconds of a tick of each sweep, and of a claim of each step."""
    from worker import sweep_runner  # its Celery application reads the environment, which `build_deps` completes

    sweep_runner.DRAIN_SHARE = 0.0  # type: ignore[misc]  # dispatch would wait for the queue to drain
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        for sweep in SWEEPS:
            broker.flushdb()
            conn.execute("DELETE FROM ticks")  # its slot is free
            times.setdefault(sweep, []).append(_time(lambda name=sweep: sweep_runner.run_sweep(name, "bench")))
            require_tick(conn, sweep)
        for step in backlog.CLAIMS:
            times.setdefault(f"claim of {step}", []).append(time_claim(deps, conn, step))
    return {name: results.median(values) for name, values in times.items()}


def require_tick(conn: Connection, sweep: str) -> None:
    """Raise SystemExit unless a tick ran and, if outputs are due, dispatch published wakes: it logs errors only."""
    results_ = [row["result"] or {} for row in fetch_all(conn, "SELECT result FROM ticks")]
    if len(results_) != 1 or (sweep == "dispatch" and bool(find_due(conn, "keep")) != bool(results_[0].get("keep"))):
        raise SystemExit(f"a tick of {sweep} came to {results_}")


def find_due(conn: Connection, step: Step) -> UUID | None:
    table, states, _ = leases.WORK[step]
    rows = fetch_all(conn, DUE.format(table=table), {"states": list(states)})
    return UUID(str(rows[0]["id"])) if rows else None


def time_claim(deps: Deps, conn: Connection, step: Step) -> float:
    """Claim a due row as a worker does, or try to with another row; return the milliseconds."""
    leased: list[Lease] = []
    row_id = find_due(conn, step)
    named, leased_by = row_id or backlog.find_last(conn, step), round_trips.LEASED_BY
    milliseconds = _time(lambda: leased.extend(step_runner._claim(deps, step, named, leased_by)[0]))
    if bool(leased) != bool(row_id):
        raise SystemExit(f"the claim of {step} returned {len(leased)} rows, though {row_id or 'none'} is due")
    conn.execute(RELEASE.format(table=leases.WORK[step][0]), {"leased_by": leased_by})
    return milliseconds


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def add_due(conn: Connection, count: int) -> None:
    conn.execute(ADD_DUE, {"count": count})
    conn.execute("ANALYZE outputs")
    found = fetch_all(conn, "SELECT count(*) AS count FROM outputs WHERE state = 'waiting' AND run_at <= moment()")
    if found[0]["count"] != count:
        raise SystemExit(f"{found[0]['count']} of {count} outputs are due")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--due", type=int, default=100_000)
    run, args = results.start("sweeps", parser)
    figures: dict[str, dict[str, Any]] = {}
    with deployment.start_servers(["jpeg"]) as servers:
        deps = statements.build_deps(servers)
        with (
            deployment.connect_directly(servers.stack) as conn,
            redis.Redis.from_url(servers.stack.valkey.url()) as broker,
        ):
            deployment.require_durable(conn)
            url = f"http://127.0.0.1:{servers.files_port}/first.jpeg"
            round_trips.count_webhook_path(deps, round_trips.RoundTripCounter(), [url])
            measure(deps, conn, broker, 2)
            figures["nothing is due"] = measure(deps, conn, broker, RUNS)
            add_due(conn, args.due)
            figures[f"{args.due:,} outputs are due"] = measure(deps, conn, broker, RUNS)
            backlog.fill(conn, args.due)
            figures[f"and {args.due:,} rows for each step"] = measure(deps, conn, broker, RUNS)
        deps.database.close()
    names = list(next(iter(figures.values())))
    rows = [[name, *(f"{times[name]:.1f} ms" for times in figures.values())] for name in names]
    run.tables = [results.Table(["", *figures], rows)]
    run.notes = [f"Median of {RUNS} runs. Dispatch publishes a queue's worth of wakes in each, if rows are due."]
    run.figures = figures
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
