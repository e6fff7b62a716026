"""
Measure a burst of webhooks: how fast deliveries are ingested, and the longest gap of the sweeps meanwhile.

`make bench PART=burst`. Each webhook reports a registered prediction with one file. With the workers of `moorage up`
the files are stored meanwhile; without a worker for the queue `keep`, ingest has the machine. Every accepted delivery
is read back.
"""

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, Final

from bench import deployment, results
from bench.deployment import Bench
from db.connection import fetch_all

SWEEPS: Final = {"dispatch": 1.0, "reconcile": 2.0}  # their periods
DEADLINE_SECONDS: Final = 300.0

INGESTED: Final = """
SELECT count(*) AS rows, count(*) FILTER (WHERE state = 'applied') AS applied,
       extract(epoch FROM max(ended_at))::float AS ended
  FROM deliveries WHERE id = ANY(%(ids)s::uuid[])
"""

TICKS: Final = """
SELECT extract(epoch FROM started_at)::float AS at FROM ticks WHERE sweep = %(sweep)s
"""


def measure(bench: Bench, count: int) -> dict[str, Any]:
    """Send webhooks at once and wait until all are ingested."""
    external_ids = bench.create_ids(count)
    bench.copy_registration(external_ids)
    bench.await_idle()
    ticks: dict[str, set[float]] = {sweep: set() for sweep in SWEEPS}
    before = bench.measure_cpu()
    sent = bench.send(bench.build_bodies(external_ids), connections=64)
    accepted = [answer["id"] for _, answer in sent.accepted]
    facts = _await_ingested(bench, accepted, ticks)
    used = deployment.subtract(bench.measure_cpu(), before)
    now = time.time()
    seconds = facts["ended"] - sent.started_at
    return {
        "webhooks": count,
        "accept_seconds": sent.seconds,
        "seconds": seconds,
        "per_second": count / seconds,
        "cpu_us": sum(used[name] for name in bench.workers) / count * 1e6,
        "cpu_by_process": used,
        "gaps": {sweep: find_longest_gap(at, sent.started_at, now) for sweep, at in ticks.items()},
    }


def _await_ingested(bench: Bench, accepted: Sequence[str], ticks: dict[str, set[float]]) -> Any:
    """Collect the ticks meanwhile, and those before: only the last hundred of each sweep are kept."""
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        for sweep, found in ticks.items():
            found |= {row["at"] for row in fetch_all(bench.conn, TICKS, {"sweep": sweep})}
        facts = fetch_all(bench.conn, INGESTED, {"ids": accepted})[0]
        if facts["rows"] != len(accepted):
            raise SystemExit(f"{len(accepted) - facts['rows']} accepted webhooks are not in the database")
        if facts["applied"] == len(accepted):
            return facts
        if time.monotonic() > end:
            raise SystemExit(f"only {facts['applied']} of {len(accepted)} were ingested in {DEADLINE_SECONDS:.0f} s")
        time.sleep(0.5)


def find_longest_gap(ticks: Collection[float], sent_at: float, until: float) -> float:
    """Return the longest time without a start of a sweep, up to now; one that began before the first webhook whole."""
    if not ticks:
        return float("inf")
    last = max((at for at in ticks if at < sent_at), default=sent_at)
    starts = [last, *sorted(at for at in ticks if at >= sent_at), until]
    return max(after - before for before, after in pairwise(starts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webhooks", type=int, nargs="+", default=[1000, 10_000])
    run, args = results.start("burst", parser)
    rows, figures = [], []
    for count, workers in [(count, 1) for count in args.webhooks] + [(args.webhooks[0], 0)]:
        with deployment.start_servers(["jpeg"]) as servers, deployment.start(servers, keep_workers=workers) as bench:
            result = measure(bench, count)
        figures.append({"keep_workers": workers, **result})
        gaps = [f"{result['gaps'][sweep]:.1f} s" for sweep in SWEEPS]
        name = "yes" if workers else "no"
        rows.append([f"{count:,}", name, f"{result['per_second']:.0f}", f"{result['cpu_us']:.0f} us", *gaps])
        run.note_load()
    columns = [
        "webhooks",
        "worker for files",
        "ingested/s",
        "CPU of workers",
        "longest gap of dispatch",
        "of reconcile",
    ]
    run.tables = [results.Table(columns, rows)]
    run.notes = ["Their periods are 1 and 2 s. Every accepted webhook was read back and applied."]
    run.figures = {"runs": figures}
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
