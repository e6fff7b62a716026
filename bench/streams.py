"""
Measure what an idle event stream costs a receiver: memory, and CPU time of the comments that keep it open.

`make bench PART=streams`. Streams of many owners, ten each, are opened and left idle for a minute.
"""

import argparse
import resource
import socket
import time
from typing import Any, Final

import requests

from bench import deployment, processes, results

OF_AN_OWNER: Final = 10


def open_streams(port: int, token: str, count: int, owners: str) -> list[socket.socket]:
    """Open event streams, and wait until each has begun."""
    opened = []
    for number in range(count):
        conn = socket.create_connection(("127.0.0.1", port), timeout=60)
        path = f"/v1/events?owner={owners}-{number // OF_AN_OWNER}"
        conn.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        opened.append(conn)
    for conn in opened:
        answer = b""
        while b"retry:" not in answer:
            part = conn.recv(4096)
            if not part:
                raise SystemExit(f"a stream was refused: {answer!r}")
            answer += part
    return opened


def require_open(opened: list[socket.socket]) -> None:
    """Close event streams. Raises SystemExit if some had ended: they cost the receiver nothing."""
    ended = sum(map(_has_ended, opened))
    for conn in opened:
        conn.close()
    if ended:
        raise SystemExit(f"{ended} of {len(opened)} streams ended while they were measured")


def _has_ended(conn: socket.socket) -> bool:
    conn.setblocking(False)
    try:
        while part := conn.recv(65536):  # comments
            if part.endswith(b"0\r\n\r\n"):  # the last chunk
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def measure(counts: list[int], seconds: float) -> dict[str, Any]:
    """Return memory and CPU time of the receiver with no stream, and with each number of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, max(counts) + 500)), hard))
    figures: dict[str, Any] = {}
    with deployment.start_servers() as servers, deployment.start(servers) as bench:
        receiver, token, port = bench.processes["receiver"], bench.local.secrets["api_token"], bench.local.port
        for conn in open_streams(port, token, OF_AN_OWNER, "first"):  # so that what the first ones load is not counted
            conn.close()
        opened: list[socket.socket] = []
        for count in [0, *counts]:
            opened += open_streams(port, token, count - len(opened), f"of-{count}")
            started, used = time.monotonic(), processes.cpu_seconds(receiver)
            time.sleep(seconds)
            cpu = (processes.cpu_seconds(receiver) - used) / (time.monotonic() - started)
            headers = {"Authorization": f"Bearer {token}"}
            began = time.monotonic()
            requests.get(f"{bench.local.url}/v1/jobs?limit=1", headers=headers, timeout=30).raise_for_status()
            figures[str(count)] = {
                "pss_bytes": processes.pss_bytes(receiver),
                "cpu": cpu,
                "answer_s": time.monotonic() - began,
            }
        require_open(opened)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--seconds", type=float, default=60.0)
    run, args = results.start("streams", parser)
    found = run.figures = measure(args.streams, args.seconds)
    base = found["0"]["pss_bytes"]
    rows = []
    for count, figures in found.items():
        each = f"{(figures['pss_bytes'] - base) / int(count) / 1000:.0f} kB" if int(count) else ""
        rows.append([count, f"{figures['pss_bytes'] / 2**20:.0f} MB", each, f"{figures['cpu'] * 100:.1f} %"])
    run.tables = [results.Table(("idle streams", "PSS of the receiver", "each", "of a core"), rows)]
    run.save()


if __name__ == "__main__":
    main()
