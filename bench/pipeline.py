"""
Compare outputs stored a second, from webhook to published render: moorage, a floor and a peer.

`make bench PART=pipeline`. The floor is one process that only hashes, decodes and stores (bench/floor.py); the peer a
plain chain of four Celery tasks (bench/peers/celery_chain.py). All use the same servers and pictures, in turn. The CPU
time is that of all processes of the workers, their decoder processes included.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import redis
import requests

from bench import deployment, floor, load, processes, results
from bench.deployment import Servers
from embedded import ports
from embedded.process import Process
from worker.local_deployment import KEEP_CHILDREN

FLOOR: Final = "one process"
PEER: Final = "Celery chain of four tasks"
FORMATS: Final = ("jpeg", "png", "webp")
PEERS: Final = results.ROOT / "bench" / "peers"

Figures = dict[str, dict[str, Any]]  # by format: outputs, seconds, cpu_seconds


def measure_moorage(servers: Servers, count: int, formats: Sequence[str], *, children: int = 0) -> Figures:
    figures = {}
    with deployment.start(servers, concurrency=children) as bench:
        for format_ in formats:
            bench.publish(8, format_)  # every child has loaded what it needs
            bench.await_idle()
            figures[format_] = bench.publish(count, format_)
    return figures


def measure_peer(servers: Servers, count: int, formats: Sequence[str], *, children: int = KEEP_CHILDREN) -> Figures:
    figures: Figures = {}
    with (
        running_peer(servers, children) as (port, pid),
        redis.Redis.from_url(servers.stack.valkey.url(1)) as broker,
    ):
        for format_ in formats:
            for number in (8, count):
                figures[format_] = _measure_chains(servers, port, pid, broker, number, format_)
    return figures


def _measure_chains(
    servers: Servers, port: int, pid: int, broker: "redis.Redis", count: int, format_: str
) -> dict[str, Any]:
    urls = [f"http://127.0.0.1:{servers.files_port}/peer-{number}.{format_}" for number in range(count)]
    bodies = [json.dumps({"status": "succeeded", "output": [url]}).encode() for url in urls]
    broker.set("celery_chain.stored", 0)
    processes.await_idle([pid])
    before = processes.cpu_seconds(pid)
    sent = load.send_bodies(port, bodies, deployment.SIGNING_SECRET, connections=16, folder=servers.folder)
    if sent.statuses != {"202": count}:
        raise SystemExit(f"not all webhooks of the peer were accepted: {sent.statuses}")
    processes.await_true(
        lambda: int(broker.get("celery_chain.stored") or 0) >= count,  # type: ignore[arg-type]
        "storing the peer's files",
        pause=0.01,  # the end is the moment at which it is seen; each look takes time from the peer
    )
    return {
        "outputs": count,
        "seconds": time.time() - sent.started_at,
        "cpu_seconds": processes.cpu_seconds(pid) - before,
        "statuses": sent.statuses,
    }


@contextlib.contextmanager
def running_peer(servers: Servers, children: int = KEEP_CHILDREN) -> Iterator[tuple[int, int]]:
    """Start the peer's web server and worker; yield the port of the one and the process id of the other."""
    (port,) = ports.reserve(1)
    files = servers.folder / "peer"
    files.mkdir(exist_ok=True)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ},
        **servers.stack.environment(),
        "BENCH_BROKER_URL": servers.stack.valkey.url(1),
        "BENCH_FOLDER": str(files),
    }
    programs = PEERS / ".venv" / "bin"
    commands = {
        "web": [programs / "gunicorn", "-w", "4", "celery_chain:app", "-b", f"127.0.0.1:{port}"],
        "worker": [programs / "celery", "-A", "celery_chain:celery", "worker", "-c", str(children)],
    }
    with contextlib.ExitStack() as stops:
        started = {}
        for name, command in commands.items():
            log = servers.folder / f"peer-{name}.log"
            started[name] = Process(command, env=environment, cwd=PEERS, log_path=log, name=name)
            stops.callback(started[name].stop)
            started[name].launch()
        processes.await_true(lambda: _responds(port), "the start of the peer", seconds=60)
        yield port, started["worker"].pid or 0


def _responds(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5).ok
    except requests.RequestException:
        return False


def list_available(names: Iterable[str]) -> list[str]:
    """Return the candidates, without the peer if it is not installed (`make bench` installs it)."""
    return [name for name in names if name != PEER or (PEERS / ".venv").exists()]


def build_table(rounds: list[dict[str, Figures]], formats: Sequence[str]) -> results.Table:
    rows = []
    for format_ in formats:
        cpu = {name: results.median(cost(r[name][format_]) for r in rounds) for name in rounds[0]}
        for name in rounds[0]:
            figures = [r[name][format_] for r in rounds]
            rate = results.median(map(rate_of, figures))
            share = cpu[name] / cpu[FLOOR]
            own = f"{ratio(rounds, format_, name):.2f} x" if name != "moorage" else ""
            rows.append([format_.upper(), name, f"{rate:.1f}", own, f"{cpu[name] * 1e3:.1f} ms", f"{share:.2f}"])
    return results.Table(["file", "", "outputs/s", "moorage is", "CPU per output", "of one process"], rows)


def cost(figures: dict[str, Any]) -> float:
    return float(figures["cpu_seconds"]) / int(figures["outputs"])


def rate_of(figures: dict[str, Any]) -> float:
    return float(figures["outputs"]) / float(figures["seconds"])


def ratio(rounds: list[dict[str, Figures]], format_: str, other: str) -> float:
    """Return the median ratio of moorage's outputs per second to another's, within a round."""
    return results.median(rate_of(r["moorage"][format_]) / rate_of(r[other][format_]) for r in rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--outputs", type=int, default=100)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--children", type=int, help="pool children of moorage's workers and of the peer's")
    run, args = results.start("pipeline", parser)
    given = {"children": args.children} if args.children else {}
    measures = {
        FLOOR: floor.run,
        "moorage": functools.partial(measure_moorage, **given),
        PEER: functools.partial(measure_peer, **given),
    }
    names = list_available(measures)
    with deployment.start_servers(args.formats) as servers:
        rounds = results.alternate(
            names, lambda name: measures[name](servers, args.outputs, args.formats), rounds=args.rounds
        )
    runs = results.median(r["moorage"][format_]["keep_runs"] for r in rounds for format_ in args.formats)
    run.tables = [build_table(rounds, args.formats)]
    run.notes = [
        f"{args.outputs} outputs at once, {args.rounds} rounds; the task keep ran {runs:.2f} times for each.",
        f"moorage's worker for files and the worker of the chain have {args.children or KEEP_CHILDREN} children each.",
    ]
    run.figures = {"rounds": rounds}
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
