"""
Compare how many webhooks per second receivers accept durably: moorage, a floor that does nothing, and peers.

`make bench PART=receiver`. All run in turn on the same servers, `--rounds` times; only ratios within a run mean
anything, as the machine and what else runs on it decide the figures. Each is measured as fast as it answers 64
connections, then at half of that rate. Every id that moorage accepted is read back from PostgreSQL, which flushes
every commit to disk.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import processes, results
from db import connection, migrate
from embedded import ports
from embedded.postgres import Postgres
from embedded.valkey import Valkey
from worker.launch import granian_flags

ROOT: Final = Path(__file__).resolve().parents[1]
PEERS: Final = ROOT / "bench" / "peers"
PEER_BIN: Final = PEERS / ".venv" / "bin"
SIGNING_SECRET: Final = "whsec_" + base64.b64encode(b"moorage-bench-signs-with-this-key").decode()
START_SECONDS: Final = 180.0
MAX_PER_SECOND: Final = 60_000  # of requests prepared for the floor; the others have a quarter
CONNECTIONS: Final = 64
FLOOR: Final = "null ASGI on granian"
FAILURES: Final = {"503", "lost", "unanswered"}  # of single requests: a provider repeats them
MAX_FAILED: Final = 0.005  # of the requests: half of what p99, which is of the accepted ones, leaves out


@dataclass(frozen=True, slots=True)
class Candidate:
    """A receiver to measure: its command for a port, and its environment."""

    name: str
    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str]
    folder: Path = ROOT


def list_candidates(database_url: str, broker_url: str, peer_url: str) -> list[Candidate]:
    """Return the floor, moorage as `moorage up` starts it, and the peers as their documentation starts them."""
    granian = [sys.executable, "-m", "granian"]
    peer = {"BENCH_BROKER_URL": broker_url, "BENCH_DATABASE_URL": peer_url}
    own = {
        "DATABASE_URL": database_url,
        "CELERY_BROKER_URL": broker_url,
        "REPLICATE_WEBHOOK_SECRET": SIGNING_SECRET,
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",  # not used by webhooks
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "PUBLIC_URL": "http://127.0.0.1:9",
        "MOORAGE_API_TOKEN": "bench-token-that-nobody-uses-0000",
        "MOORAGE_DOTENV": "",
        "LOG_FORMAT": "json",
    }
    gunicorn = [str(PEER_BIN / "gunicorn"), "-w", "4", "flask_delay:app", "-b"]
    uvicorn = [str(PEER_BIN / "uvicorn"), "fastapi_procrastinate:app", "--no-access-log", "--port"]
    return [
        Candidate(FLOOR, lambda port: [*granian, *granian_flags("127.0.0.1", port)[:-1], "bench.null_app:app"], {}),
        Candidate("moorage", lambda port: [*granian, *granian_flags("127.0.0.1", port)], own),
        Candidate("Flask + gunicorn + delay()", lambda port: [*gunicorn, f"127.0.0.1:{port}"], peer, PEERS),
        Candidate("FastAPI + procrastinate", lambda port: [*uvicorn, str(port)], peer, PEERS),
    ]


@contextlib.contextmanager
def running(candidate: Candidate, log: Path) -> Iterator[tuple[int, int]]:
    """Start a receiver until the block ends; yield its port and process id."""
    (port,) = ports.reserve(1)
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **candidate.environment}
    with log.open("ab") as output:
        process = subprocess.Popen(
            candidate.command(port), cwd=candidate.folder, env=environment, stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _responds(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{candidate.name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _responds(port: int) -> bool:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        conn.request("GET", "/healthz")
        conn.getresponse().read()
    except OSError:
        return False
    finally:
        conn.close()
    return True


def send_load(port: int, folder: Path, *, run: str, count: int, seconds: float, rate: float = 0.0) -> dict[str, Any]:
    """Run the load generator; return its result with the accepted webhooks: id of the webhook and row id."""
    accepted = folder / f"{run}.accepted"
    flags = {"port": port, "secret": SIGNING_SECRET, "run": run, "requests": count, "seconds": seconds, "rate": rate}
    flags |= {"connections": CONNECTIONS, "accepted": accepted}
    command = [sys.executable, "-m", "bench.load", *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    rows = [line.split("\t", 1) for line in accepted.read_text().splitlines()]
    accepted.unlink()
    return {**json.loads(done.stdout), "rows": rows}


def measure(candidate: Candidate, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Measure a receiver: at its peak, then at half of it."""
    run = secrets.token_hex(4)
    count = int(seconds * (MAX_PER_SECOND if candidate.name == FLOOR else MAX_PER_SECOND / 4))
    with running(candidate, folder / "receiver.log") as (port, pid):
        send_load(port, folder, run=f"{run}w", count=min(count, 500), seconds=1.0)
        processes.await_idle([pid], cpu=0.02)
        before = processes.cpu_seconds(pid)
        peak = send_load(port, folder, run=f"{run}p", count=count, seconds=seconds)
        used = processes.cpu_seconds(pid) - before
        half = send_load(port, folder, run=f"{run}h", count=count, seconds=seconds, rate=peak["per_second"] / 2)
    for phase, sent in {"peak": peak, "half": half}.items():
        require_accepted(f"{candidate.name}, {phase}", sent["statuses"])
    result = {
        "name": candidate.name,
        "per_second": peak["per_second"],
        "cpu_us": used / max(1, peak["accepted"]) * 1e6,
        "p99_ms": half["p99_ms"],
        "statuses": {"peak": peak["statuses"], "half": half["statuses"]},
        "load": os.getloadavg()[0],
    }
    if candidate.name == "moorage":
        result |= check_recorded(candidate.environment["DATABASE_URL"], [*peak["rows"], *half["rows"]], f"msg_{run}p")
    return result


def require_accepted(what: str, statuses: Mapping[str, int]) -> None:
    """Raise SystemExit unless nearly all requests were accepted: else the figures are not those of receiving."""
    accepted = statuses.get("200", 0) + statuses.get("202", 0)
    share = 1 - accepted / max(1, sum(statuses.values()))
    if share > MAX_FAILED or set(statuses) - FAILURES - {"200", "202"}:
        raise SystemExit(f"{what}: too few webhooks were accepted: {dict(statuses)}")


RECORDED = """
SELECT webhook_id, id::text AS id, body IS NOT NULL AND state = 'new' AS is_complete FROM deliveries
 WHERE webhook_id = ANY(%(ids)s)
"""

COMMITS = "SELECT count(DISTINCT xmin::text) AS commits, count(*) AS rows FROM deliveries WHERE webhook_id LIKE %(run)s"


def check_recorded(database_url: str, accepted: list[list[str]], run: str) -> dict[str, Any]:
    """Read every accepted id back; return how many are missing, and the rows for each commit of the run `run`."""
    with contextlib.closing(connection.connect(database_url)) as conn:
        rows = connection.fetch_all(conn, RECORDED, {"ids": [webhook_id for webhook_id, _ in accepted]})
        counts = connection.fetch_all(conn, COMMITS, {"run": f"{run}%"})[0]
    found = {row["webhook_id"]: row["id"] for row in rows if row["is_complete"]}
    missing = sum(found.get(webhook_id) != json.loads(body)["id"] for webhook_id, body in accepted)
    return {
        "read_back": len(accepted),
        "missing": missing,
        "rows_per_commit": counts["rows"] / max(1, counts["commits"]),
    }


def compare(rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the median of each figure, and of the ratios of moorage to each other one within a round."""
    names = [result["name"] for result in rounds[0]]
    by_name = {name: [result for round_ in rounds for result in round_ if result["name"] == name] for name in names}
    figures = ("per_second", "p99_ms", "cpu_us")
    medians = {name: {key: statistics.median(r[key] for r in rs) for key in figures} for name, rs in by_name.items()}
    own = by_name["moorage"]
    ratios = {
        name: statistics.median(a["per_second"] / b["per_second"] for a, b in zip(own, others, strict=True))
        for name, others in by_name.items()
        if name != "moorage"
    }
    return {"medians": medians, "ratios": ratios}


def build_table(report: Mapping[str, Any]) -> results.Table:
    rows = []
    for name, row in report["medians"].items():
        ratio = f"{report['ratios'][name]:.2f} x" if name in report["ratios"] else ""
        rows.append([name, f"{row['per_second']:,.0f}", ratio, f"{row['p99_ms']:.0f} ms", f"{row['cpu_us']:.0f} us"])
    columns = ["receiver", "accepted/s", "moorage is", "p99 at half of that", "CPU of its processes"]
    return results.Table(columns, rows)


def describe_recorded(rounds: list[list[dict[str, Any]]]) -> str:
    own = [result for round_ in rounds for result in round_ if result["name"] == "moorage"]
    rows, missing = sum(r["read_back"] for r in own), sum(r["missing"] for r in own)
    per_commit = statistics.median(r["rows_per_commit"] for r in own)
    failed = sum((count_failed(result) for round_ in rounds for result in round_), Counter[str]())
    return (
        f"{rows:,} accepted ids read back, {missing} missing; {per_commit:.0f} webhooks a commit; {len(rounds)} rounds."
        + (f" Not accepted: {', '.join(f'{count} {what}' for what, count in failed.items())}." if failed else "")
    )


def count_failed(result: Mapping[str, Any]) -> Counter[str]:
    """Count the requests that a receiver did not accept, by its name and their status."""
    statuses = Counter[str]()
    for phase in result["statuses"].values():
        statuses.update({f"{result['name']} {status}": phase[status] for status in FAILURES & set(phase)})
    return statuses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5)
    run, args = results.start("receiver", parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        postgres = Postgres(folder / "postgres", "secret-of-the-bench", folder / "postgres.log")
        valkey = Valkey(folder / "valkey", "secret-of-the-bench", folder / "valkey.log")
        with contextlib.ExitStack() as stops:
            for server in (postgres, valkey):
                stops.callback(server.stop)
                server.start()
            rounds = run_rounds(postgres, valkey.url(), folder, rounds=args.rounds, seconds=args.seconds)
    report = compare(rounds)
    run.tables, run.notes = [build_table(report)], [describe_recorded(rounds)]
    run.figures = {**report, "rounds": rounds}
    run.loads += [result["load"] for round_ in rounds for result in round_]
    run.save()
    return int(any(result.get("missing") for round_ in rounds for result in round_))


def run_rounds(
    postgres: Postgres, broker_url: str, folder: Path, *, rounds: int, seconds: float
) -> list[list[dict[str, Any]]]:
    url, peer_url = postgres.create_database("moorage"), postgres.create_database("peer")
    with contextlib.closing(connection.connect(url)) as conn:
        migrate.migrate(conn)
        for setting in ("fsync", "synchronous_commit"):
            row = conn.execute("SELECT current_setting(%s) AS value", (setting,)).fetchone()
            if row != {"value": "on"}:
                raise SystemExit(f"{setting} is off: nothing would be durable")
    chosen = [item for item in list_candidates(url, broker_url, peer_url) if item.folder == ROOT or PEER_BIN.exists()]
    if PEER_BIN.exists():
        create = [str(PEER_BIN / "python"), "fastapi_procrastinate.py"]
        subprocess.run(create, cwd=PEERS, env={**os.environ, "BENCH_DATABASE_URL": peer_url}, check=True)
    rounds_: list[list[dict[str, Any]]] = []
    for number in range(rounds):
        order = chosen if number % 2 == 0 else chosen[::-1]
        measured = {candidate.name: measure(candidate, folder, seconds=seconds) for candidate in order}
        rounds_.append([measured[candidate.name] for candidate in chosen])
    return rounds_


if __name__ == "__main__":
    sys.exit(main())
