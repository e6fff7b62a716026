"""
Measure what one output costs in a running deployment, and two receivers and two `keep` workers side by side.

`make bench PART=scale`. The same load of JPEGs, all at once: for the processes of `moorage up`, then a second receiver
and a second worker for files, then the same through PgBouncer in transaction mode, if it is installed.
"""

import argparse
import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from bench import deployment, pictures, processes, results
from bench.deployment import Bench, Servers
from db.connection import Connection, fetch_all
from embedded import ports
from tests.support import pgbouncer
from worker.launch import granian_flags
from worker.local_deployment import KEEP_CHILDREN

FILES_A_DAY: Final = 10_000
PEAK: Final = 10  # times the mean

TABLES: Final = """
SELECT sum(pg_total_relation_size(oid))::float AS bytes
  FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
STATE: Final = """
SELECT (pg_current_wal_insert_lsn() - '0/0')::float AS wal,
       (SELECT xact_commit::float FROM pg_stat_database WHERE datname = current_database()) AS commits
"""
SESSIONS: Final = """
SELECT count(*) AS sessions, count(*) FILTER (WHERE state = 'active') AS active
  FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def measure(bench: Bench, other_port: int, count: int, *, warm_up: int = 8) -> dict[str, Any]:
    """Send webhooks to one or two receivers at once; return rate and costs of one output."""
    if warm_up:
        bench.publish(warm_up)
    external_ids = bench.create_ids(count)
    bench.copy_registration(external_ids)
    bench.await_idle()
    sizes, before = fetch_all(bench.conn, TABLES)[0]["bytes"], fetch_all(bench.conn, STATE)[0]
    with counted_queries(bench.conn) as queries, sampled_sessions(bench.conn) as sessions:
        result = bench.publish_registered(external_ids, other_port=other_port)
    after = fetch_all(bench.conn, STATE)[0]
    growth = fetch_all(bench.conn, TABLES)[0]["bytes"] - sizes
    return {
        **result,
        "per_second": count / result["seconds"],
        "cpu_ms": {name: seconds / count * 1e3 for name, seconds in result["cpu_by_process"].items()},
        "wal_bytes": (after["wal"] - before["wal"]) / count,
        "commits": (after["commits"] - before["commits"] - queries.total()) / count,
        "table_bytes": growth / count,
        **{name: max(values, default=0) for name, values in sessions.items()},
    }


@contextlib.contextmanager
def counted_queries(conn: Connection) -> Iterator[Counter[str]]:
    """Count the statements of the bench itself, each of which is a transaction, while the block runs."""
    counts, execute = Counter[str](), conn.execute

    def count(*args: Any, **options: Any) -> Any:
        counts["statements"] += 1
        return execute(*args, **options)

    conn.execute = count  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        conn.execute = execute  # type: ignore[method-assign]


@contextlib.contextmanager
def sampled_sessions(conn: Connection) -> Iterator[dict[str, list[int]]]:
    """Sample the sessions of PostgreSQL while the block runs."""
    samples: dict[str, list[int]] = {"sessions": [], "active": []}
    stopping = threading.Event()

    def sample() -> None:
        while not stopping.wait(0.2):
            for name, value in fetch_all(conn, SESSIONS)[0].items():
                samples[name].append(value)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stopping.set()
        thread.join()


@contextlib.contextmanager
def second_receiver(bench: Bench) -> Iterator[int]:
    """Run another receiver; yield its port."""
    (port,) = ports.reserve(1)
    flags = granian_flags("127.0.0.1", port)
    process = bench.local.add_process("receiver2", ["granian", *flags], (port, "/healthz"))
    process.start()
    try:
        yield port
    finally:
        process.stop()


@contextlib.contextmanager
def running_pgbouncer(servers: Servers) -> Iterator[pgbouncer.Pgbouncer]:
    server = pgbouncer.Pgbouncer(servers.folder / "pgbouncer", servers.stack.postgres)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def run_form(servers: Servers, count: int, *, is_double: bool, has_pgbouncer: bool) -> dict[str, Any]:
    with contextlib.ExitStack() as stops:
        pooler = stops.enter_context(running_pgbouncer(servers)) if has_pgbouncer else None
        overrides = {"DATABASE_URL": pooler.url("moorage")} if pooler else {}
        workers = 2 if is_double else 1
        bench = stops.enter_context(deployment.start(servers, keep_workers=workers, overrides=overrides))
        bench = replace(bench, others=[pooler] if pooler else [])
        other_port = stops.enter_context(second_receiver(bench)) if is_double else bench.local.port
        memory = processes.pss_bytes(*bench.processes.values())
        return {**measure(bench, other_port, count), "pss_bytes": memory}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, default=150)
    run, args = results.start("scale", parser)
    forms = {
        "as `moorage up`": {"is_double": False, "has_pgbouncer": False},
        "two receivers, two `keep` workers": {"is_double": True, "has_pgbouncer": False},
        "the same behind PgBouncer": {"is_double": True, "has_pgbouncer": True},
    }
    if pgbouncer.find() is None:
        forms.popitem()
    with deployment.start_servers(["jpeg"]) as servers:
        figures = {name: run_form(servers, args.outputs, **form) for name, form in forms.items()}
    first = next(iter(figures.values()))
    run.tables = [build_rates(figures), build_cost(first), build_growth(first)]
    run.notes = [f"{args.outputs} JPEGs at once in each form, all read back. CPU includes the sweeps meanwhile."]
    run.notes.append(f"A worker for files has {KEEP_CHILDREN} children.")
    run.figures = figures
    run.save()
    return 0


def build_rates(figures: dict[str, dict[str, Any]]) -> results.Table:
    first = next(iter(figures.values()))["per_second"]
    rows = []
    for name, result in figures.items():
        rate, sessions = result["per_second"], result["sessions"]
        cpu = sum(result["cpu_ms"].values())
        memory = f"{result['pss_bytes'] / 2**20:.0f} MB"
        rows.append([name, f"{rate:.1f}", f"{rate / first:.2f} x", str(sessions), f"{cpu:.0f} ms", memory])
    columns = [
        "processes",
        "outputs/s",
        "of the first",
        "sessions of PostgreSQL",
        "CPU an output, all processes",
        "PSS",
    ]
    return results.Table(columns, rows)


def build_cost(result: dict[str, Any]) -> results.Table:
    """Return the costs of one output, largest CPU first."""
    rows = [[f"CPU of {name}", f"{ms:.1f} ms"] for name, ms in sorted(result["cpu_ms"].items(), key=lambda i: -i[1])]
    rows.append(["commits, sweeps included", f"{result['commits']:.1f}"])
    rows.append(["WAL", f"{result['wal_bytes'] / 1e3:.1f} kB"])
    rows.append(["tables and indexes", f"{result['table_bytes'] / 1e3:.1f} kB"])
    return results.Table(["one output costs", "as `moorage up`"], rows)


def build_growth(result: dict[str, Any]) -> results.Table:
    """Return what the measured cost of an output means for more files a day: computed, not measured."""
    cpu = dict(result["cpu_ms"])
    database, storage = cpu.pop("postgres"), cpu.pop("seaweedfs")
    files_bytes = sum(map(len, pictures.load("jpeg"))) / pictures.VARIANTS
    rows = []
    for factor in (1, 10, 100, 1000):
        a_day = factor * FILES_A_DAY
        mean, peak = a_day / 86_400, a_day / 86_400 * PEAK
        rows.append(
            [
                f"{a_day:,}",
                f"{mean:.1f}, {peak:.0f}",
                *(_format_cores(ms, mean, peak) for ms in (sum(cpu.values()), database, storage)),
                f"{result['commits'] * peak:,.0f}",
                *(_format_bytes(a_day * size) for size in (result["wal_bytes"], result["table_bytes"], files_bytes)),
            ]
        )
    columns = ["files a day", "a second, at peak", "cores of moorage", "of PostgreSQL", "of SeaweedFS"]
    columns += ["commits/s at peak", "WAL a day", "tables a day", "stored a day"]
    return results.Table(columns, rows)


def _format_cores(ms: float, mean: float, peak: float) -> str:
    return f"{ms * mean / 1e3:.2f}, {ms * peak / 1e3:.1f}"


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count > 1e9 else f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
