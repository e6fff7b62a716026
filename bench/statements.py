"""
Count what one output costs: SQL round trips by step, requests to storage, bytes of WAL; with one and four files a job.

`make bench PART=statements`. The steps run in this process, from the registration of a prediction to its published
render, as a worker runs them (bench/round_trips.py). These are counts: they do not depend on the machine.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from botocore.httpsession import URLLib3Session

from bench import deployment, results, round_trips
from bench.deployment import Servers
from db import migrate
from db.connection import Connection, connect, fetch_all
from tasks.step import Deps
from worker import boot

FILES: Final = (1, 4)
JOBS: Final = 40  # of which WAL and rows are counted

WAL: Final = "SELECT pg_current_wal_insert_lsn() - '0/0' AS bytes"
PUBLISHED: Final = """
SELECT count(*) AS variants FROM jobs j JOIN render_variants v ON v.render_id = j.id
 WHERE j.id = ANY(%(ids)s) AND j.state = 'succeeded'
"""
SIZE: Final = """
SELECT sum(pg_column_size(e.*)) AS bytes, count(*) AS events FROM events e WHERE at >= %(since)s
"""


@contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Count the requests to storage by method while the block runs."""
    counts: Counter[str] = Counter()
    send = URLLib3Session.send

    def count(session: URLLib3Session, request: Any) -> Any:
        counts[request.method] += 1
        return send(session, request)

    URLLib3Session.send = count  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        URLLib3Session.send = send  # type: ignore[method-assign]


def build_deps(servers: Servers) -> Deps:
    """Return a worker's dependencies for these servers, with a current schema."""
    os.environ.update(servers.stack.environment() | deployment.build_settings(servers) | {"MOORAGE_DOTENV": ""})
    with connect(servers.stack.environment()["DATABASE_URL"]) as conn:
        migrate.migrate(conn)
    return boot.get_deps()


def measure(deps: Deps, conn: Connection, urls: Sequence[str], *, jobs: int) -> dict[str, Any]:
    """Return round trips by step of a job with these files, and what an output costs; both as a mean of several."""
    files = len(urls)
    round_trips.count_webhook_path(deps, round_trips.RoundTripCounter(), urls)  # opens connections
    counter = round_trips.RoundTripCounter()
    before = fetch_all(conn, WAL)[0]["bytes"]
    since = fetch_all(conn, "SELECT moment() AS now")[0]["now"]
    with counted_requests() as requests:
        ids = [round_trips.count_webhook_path(deps, counter, urls).job_id for _ in range(jobs)]
    events = fetch_all(conn, SIZE, {"since": since})[0]["events"]
    result = {
        "files": files,
        "round_trips": {step: count / jobs for step, count in counter.round_trips.items()},
        "per_output": counter.total() / jobs / files,
        "claims": counter.runs["keep"] / jobs / files,
        "requests": requests.total() / jobs / files,
        "wal_bytes": float(fetch_all(conn, WAL)[0]["bytes"] - before) / jobs / files,
        "events": events / jobs / files,
    }
    published = fetch_all(conn, PUBLISHED, {"ids": ids})[0]["variants"]
    if published != jobs * files:
        raise SystemExit(f"{published} of {jobs * files} files were published")
    return result


def main() -> int:
    run = results.Run("statements")
    with deployment.start_servers(["jpeg"]) as servers:
        deps = build_deps(servers)
        with connect(servers.stack.environment()["DATABASE_URL"]) as conn:
            deployment.require_durable(conn)
            base = f"http://127.0.0.1:{servers.files_port}/counted"
            figures = [measure(deps, conn, [f"{base}-{n}.jpeg" for n in range(count)], jobs=JOBS) for count in FILES]
        deps.database.close()
    steps = list(figures[0]["round_trips"])
    columns = ["files a job", *steps, "round trips an output", "claims", "requests to storage", "events", "WAL"]
    run.tables = [results.Table(columns, [_format_row(row, steps) for row in figures])]
    run.notes = ["Round trips by step are those of a job; all else is for one output. A pipeline is one round trip."]
    run.figures = {"jobs": figures}
    run.save()
    return 0


def _format_row(row: dict[str, Any], steps: list[str]) -> list[str]:
    trips = [f"{row['round_trips'].get(step, 0):.0f}" for step in steps]
    counts = [f"{row[name]:.1f}" for name in ("per_output", "claims", "requests", "events")]
    return [str(row["files"]), *trips, *counts, f"{row['wal_bytes'] / 1e3:.1f} kB"]


if __name__ == "__main__":
    sys.exit(main())
