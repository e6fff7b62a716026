"""
Measure what an idle stack costs: round trips to PostgreSQL, CPU time and memory of each process.

`make bench-idle`. The stack is that of `moorage up`, without its provider stand-in. Connections to PostgreSQL go
through a relay that counts ReadyForQuery messages: one ends each round trip, however many statements it contained.
"""

import argparse
import socket
import threading
import time
from collections import Counter
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from bench import deployment, processes, results

SETTLE_SECONDS: Final = 15.0  # the first sweeps, and Flower's first look at the workers
MEGABYTE: Final = 1 << 20
READY: Final = ord("Z")  # ReadyForQuery
SSL_REQUEST: Final = (80877103).to_bytes(4, "big")


class CountingRelay:
    """Forwards connections to PostgreSQL, and counts round trips."""

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        self._upstream = (parts.hostname or "", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        account, port = parts.netloc.rpartition("@")[0], self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{port}"))
        self.counts: Counter[str] = Counter()  # "round trips", "connections"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        start = _receive(client, 8)
        if start[4:] == SSL_REQUEST:  # none here
            client.sendall(b"N")
            start = b""
        self.counts["connections"] += 1
        with client, socket.create_connection(self._upstream) as server:
            server.sendall(start)
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            while head := _receive(server, 5):
                self.counts["round trips"] += head[0] == READY
                client.sendall(head + _receive(server, int.from_bytes(head[1:], "big") - 4))


def _receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one side has closed its connection


def measure(seconds: float) -> dict[str, Any]:
    """Start the stack, let it become idle, and return its figures by process."""
    with deployment.start_servers() as servers:
        relay = CountingRelay(servers.stack.environment()["DATABASE_URL"])
        with deployment.start(servers, flower=True, overrides={"DATABASE_URL": relay.url}) as bench:
            time.sleep(SETTLE_SECONDS)
            counts, used, started = relay.counts.copy(), bench.measure_cpu(), time.monotonic()
            time.sleep(seconds)
            used, passed = deployment.subtract(bench.measure_cpu(), used), time.monotonic() - started
            if not relay.counts["round trips"] - counts["round trips"]:
                raise SystemExit("no round trip was counted: sweeps claim a slot each second")
            pids = bench.processes | bench.servers
            return {
                "per_second": {name: count / passed for name, count in (relay.counts - counts).items()},
                "cpu_seconds_per_minute": {name: value * 60 / passed for name, value in used.items()},
                "pss_bytes": {name: processes.pss_bytes(pid) for name, pid in pids.items()},
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0)
    run, args = results.start("idle", parser)
    found = run.figures = measure(args.seconds)
    cpu, pss = found["cpu_seconds_per_minute"], found["pss_bytes"]
    rows = [(name, f"{cpu[name]:.2f}", f"{pss[name] / MEGABYTE:.0f}") for name in cpu]
    total = ("**all**", f"{sum(cpu.values()):.2f}", f"{sum(pss.values()) / MEGABYTE:.0f}")
    run.tables = [results.Table(("process and its children", "CPU s/min", "PSS, MB"), [*rows, total])]
    run.notes = [f"{found['per_second'].get('round trips', 0.0):.1f} round trips to PostgreSQL a second."]
    run.save()


if __name__ == "__main__":
    main()
