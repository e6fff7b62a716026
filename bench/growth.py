"""
Measure what the size of the history costs: every statement that runs regularly, in a small and in a large history.

`make bench PART=growth`. The live work is the same in both, so that each read should take as long: a ratio above 1 is
what the rows of the past cost. `rows` are those that the statements' plans read, `buffers` the pages.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from bench import backlog, history, results
from db import (
    clock_skew,
    dead_letters,
    discarding,
    ended_counts,
    events,
    jobs,
    leases,
    migrate,
    objects,
    output_claims,
    owner_limits,
    progress,
    projects,
    renders,
    retention,
    storage_use,
    submission_turns,
)
from db.audit import checks
from db.connection import Connection, connect, fetch_all
from db.dead_letters import DeadLetterFilter
from db.reports import metrics, my_renders, status
from embedded.postgres import Postgres
from moorage.settings import Settings

Read = Callable[[Connection], object]

ROUNDS: Final = 9
GROWING: Final = {
    "deliveries",
    "jobs",
    "predictions",
    "outputs",
    "renders",
    "render_variants",
    "dead_letters",
    "events",
}
_JOBS: Final[Mapping[str, Any]] = {"owner": None, "state": None, "kind": None, "before": None}
_RENDERS: Final[Mapping[str, Any]] = {**_JOBS, "kind": None, "style": None, "project_id": None}
_CARDS: Final = my_renders.NO_FILTER


def _list_jobs(**filters: str) -> Read:
    return lambda conn: jobs.list_page(conn, {**_JOBS, **filters}, 51)


def _list_renders(**filters: str) -> Read:
    return lambda conn: renders.list_page(conn, {**_RENDERS, **filters}, 51)


def _list_cards(**filters: Any) -> Read:
    return lambda conn: my_renders.list_cards(conn, history.OWNER, {**_CARDS, **filters}, None, 25)


def _list_letters(**filters: Any) -> Read:
    return lambda conn: dead_letters.list_newest(conn, DeadLetterFilter(**filters), limit=50)


def _undone(read: Read) -> Read:
    def run(conn: Connection) -> None:
        with conn.transaction(force_rollback=True):
            read(conn)

    return run


def _dispatch(conn: Connection) -> None:
    for step in leases.DUE:
        leases.wake_due(conn, step, limit=64, queue_is_empty=False)
    output_claims.wake_outputs(conn, limit=64, queued=0)
    settings = Settings(_env_file=None, database_url="postgresql://bench", broker_url="redis://bench")
    submission_turns.wake(conn, settings, {"replicate": "submit", "fal": "submit", "openai": "generate"}, limit=64)


def _read_use(conn: Connection) -> None:
    conn.execute("INSERT INTO storage_use (bucket, owner, rank) VALUES ('public', 'largest', 1)")  # all were counted
    owner_limits.read(conn, history.OWNER)


def _count_slot(conn: Connection) -> None:
    conn.execute("UPDATE cursors SET moved_at = moved_at - interval '5 min' WHERE sweep = 'counts'")
    ended_counts.count_next_hour(conn)


def _reconcile(conn: Connection) -> None:
    conn.execute(f"SELECT {clock_skew.IS_SET_BACK}")
    for table in leases.SUBJECT:
        leases.release_expired(conn, table, "bench", lease_seconds=30.0, min_ticks=10)
    jobs.list_due(conn)
    projects.list_overwritten(conn)
    progress.list_wrong_statuses(conn)
    discarding.list_spooled_inputs(conn)


def _read_gauges(conn: Connection) -> None:
    *_, failures = metrics.collect_gauges(conn)
    if failed := [sample.labels["gauge"] for sample in failures.samples if sample.value]:
        raise SystemExit(f"gauges that could not be read: {', '.join(failed)}")


def _expire(conn: Connection) -> None:
    seconds = 100 * 86400.0
    retention.list_old_renders(conn, seconds, 100)
    for sql in (retention.OLD_FAILED_JOBS, retention.OLD_DELETED_JOBS):
        retention.list_old_jobs(conn, sql, seconds, 100, retention.START)
    for kind in retention.IN_BATCHES:
        retention.expire_batch(conn, kind, seconds, 500, actor="bench")


def _audit(conn: Connection) -> None:
    args = {"lease_seconds": 30.0, "overdue_seconds": 900.0}
    for scope in checks.PAGES:
        keys = checks.list_keys(conn, scope, "", limit=500)
        for check in checks.list_checks(scope, deep=False):
            checks.find_violations(conn, check, keys, args)
    for scope in objects.LIST_OBJECTS:
        objects.list_objects(conn, scope, "")
    objects.sample_kept_outputs(conn, 50)


READS: Final[Mapping[str, Read]] = {
    "/metrics": _read_gauges,
    "moorage status": _undone(lambda conn: status.read_overview(conn, ["replicate", "fal", "openai"])),
    "ticks, with what is due": _undone(backlog.SEARCHES["ticks"]),
    "dispatch": _undone(_dispatch),
    "use of an owner": _undone(_read_use),
    "jobs": _list_jobs(),
    "jobs of an owner": _list_jobs(owner=history.OWNER),
    "jobs of a former owner": _list_jobs(owner=history.FORMER_OWNER),
    "jobs, none found": _list_jobs(state="cancelled"),
    "jobs of an owner, none found": _list_jobs(owner=history.OWNER, state="cancelled"),
    "renders": _list_renders(),
    "renders of a former owner": _list_renders(owner=history.FORMER_OWNER),
    "renders, none found: kind": _list_renders(kind="video"),
    "renders, none found: style": _list_renders(style="other"),
    "renders, none found: state": _list_renders(state="failed"),
    "renders, none found: project": _list_renders(project_id="other"),
    "renders of an owner, none found": _list_renders(owner=history.OWNER, kind="video", style="plain"),
    "page": _list_cards(),
    "page of a former owner": lambda conn: my_renders.list_cards(conn, history.FORMER_OWNER, _CARDS, None, 25),
    "page, expired": _list_cards(shown="expired", states=["failed"]),
    "page, none found": _list_cards(style="other"),
    "page, choices": lambda conn: my_renders.list_filter_choices(conn, history.OWNER),
    "dead letters": _list_letters(),
    "dead letters, none found": _list_letters(category="POISON"),
    "closed dead letters, none found": _list_letters(state="discarded", category="POISON"),
    "dead letters by cause": lambda conn: dead_letters.count_groups(conn, DeadLetterFilter()),
    "events, oldest id": events.get_oldest_id,
    "reconcile": _undone(_reconcile),
    "counts of five minutes": _undone(_count_slot),
    "usage, one page": _undone(storage_use.count_next_page),
    "orphans, one page": lambda conn: objects.find_referenced_keys(conn, [f"renders/{n}" for n in range(500)]),
    "retention, nothing is old": _undone(_expire),
    "audit, one page of each": _undone(_audit),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """The rows and pages that the plans of a read's statements read, and the tables they read whole."""

    rows: int
    buffers: int
    whole: list[str]


class _Recorder:
    """A connection that notes its statements."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.statements: list[tuple[str, Any]] = []

    def execute(self, sql: str, args: Any = None) -> Any:
        if sql.lstrip().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
            self.statements.append((sql, args))
        return self._conn.execute(sql, args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


def explain(conn: Connection, read: Read) -> Cost:
    """Run a read, then explain its statements; both are rolled back."""
    recorder = _Recorder(conn)
    read(cast(Connection, recorder))
    rows, buffers, whole = 0, 0, set[str]()
    with conn.transaction(force_rollback=True):
        for sql, args in recorder.statements:
            explained = fetch_all(conn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", args)
            plan = explained[0]["QUERY PLAN"][0]["Plan"]
            buffers += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            for node in _list_nodes(plan):
                if "Relation Name" in node or "Index Name" in node:
                    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
                    rows += round((node["Actual Rows"] + removed) * node["Actual Loops"])
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING:
                    whole.add(node["Relation Name"])
    return Cost(rows, buffers, sorted(whole))


def _list_nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in _list_nodes(part))]


def count_all(conn: Connection) -> None:
    """Count the ended rows, as the sweep has done in a running system."""
    more = True
    while more:
        with conn.transaction():
            more = ended_counts.count_next_hour(conn)


def compare(conns: Sequence[Connection], read: Read) -> dict[str, Any]:
    """Time a read in a small and a large history in turn, so that other load hits both; return medians."""
    for conn in conns:
        read(conn)
    rounds = []
    for _ in range(ROUNDS):
        seconds = []
        for conn in conns:
            started = time.perf_counter()
            read(conn)
            seconds.append(time.perf_counter() - started)
        rounds.append(seconds)
    times = [results.median(values) * 1000 for values in zip(*rounds, strict=True)]
    costs = [asdict(explain(conn, read)) for conn in conns]
    return {"ms": times, "ratio": results.median(large / small for small, large in rounds), "costs": costs}


def format_table(figures: Mapping[str, Mapping[str, Any]], sizes: Sequence[int]) -> results.Table:
    rows = [
        (
            name,
            *(f"{ms:.1f} ms" for ms in found["ms"]),
            f"{found['ratio']:.1f} x",
            *(f"{cost['rows']:,}" for cost in found["costs"]),
        )
        for name, found in figures.items()
    ]
    columns = ("read", *(f"{size:,} files" for size in sizes), "ratio", *(f"rows of {size:,}" for size in sizes))
    return results.Table(columns, rows)


def measure(run: results.Run, conns: Sequence[Connection], sizes: Sequence[int]) -> None:
    for conn in conns:
        count_all(conn)
        run.note_load()
    run.figures = {name: compare(conns, read) for name, read in READS.items()}
    run.tables.append(format_table(run.figures, sizes))
    run.notes.append(
        f"Half of the files are of the last day; the same {history.LIVE_JOBS} files wait in both histories."
        f" Rows are what the plans read, once for each of their nodes. Medians of {ROUNDS} rounds."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=(10_000, 1_000_000))
    run, args = results.start("growth", parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        postgres = Postgres(folder / "postgres", "secret-of-the-bench", folder / "postgres.log")
        with contextlib.ExitStack() as stops:
            stops.callback(postgres.stop)
            postgres.start()
            conns = []
            for size in args.sizes:
                conn = stops.enter_context(connect(postgres.create_database(f"history_{size}")))
                migrate.migrate(conn)
                history.fill(conn, size)
                conns.append(conn)
            measure(run, conns, args.sizes)
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
