"""
Send signed webhooks over persistent connections, as fast as they are answered or at a rate; print the result as JSON.

A program of its own, so that its work is not that of the measured process. Requests are signed before the clock starts.
With a rate, latency counts from the moment at which a request was due, so that a slow server cannot hide a queue.
"""

import argparse
import asyncio
import base64
import collections
import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

END_SECONDS = 20.0  # how long answers are awaited after the last request


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What was answered; `accepted` has the number of each accepted request and the body of its answer."""

    accepted: list[tuple[int, dict[str, Any]]]
    statuses: dict[str, int]
    started_at: float  # of the clock of the machine
    seconds: float


def send_bodies(port: int, bodies: Sequence[bytes], secret: str, *, connections: int, folder: Path) -> LoadResult:
    """Send signed webhooks with these bodies as fast as they are answered, from a process of its own."""
    run = secrets.token_hex(4)
    source, accepted = folder / f"{run}.bodies", folder / f"{run}.accepted"
    source.write_bytes(b"\n".join(bodies))
    flags = {"port": port, "secret": secret, "run": run, "bodies": source, "accepted": accepted}
    flags["connections"] = connections
    command = [sys.executable, "-m", "bench.load", *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    rows = [line.split("\t", 1) for line in accepted.read_text().splitlines()]
    numbered = [(int(webhook_id.rpartition("_")[2]), json.loads(body)) for webhook_id, body in rows]
    return LoadResult(numbered, result["statuses"], result["started_at"], result["seconds"])


def decode_secret(secret: str) -> bytes:
    """Return the key of a secret of Standard Webhooks."""
    return base64.b64decode(secret.removeprefix("whsec_"))


def build_request(number: int, run: str, key: bytes) -> bytes:
    """Return a request of about 0.9 kB body, with an id of its own."""
    prediction = {
        "id": f"{run}{number}",
        "status": "processing",
        "model": "black-forest-labs/flux-schnell",
        "input": {"prompt": "a harbour at dawn, moored boats, " * 12, "num_outputs": 4, "seed": number},
        "logs": "Using seed: 42\n0%| | 0/4\n25%|##5 | 1/4\n50%|##### | 2/4\n75%|#######5 | 3/4\n100%|##########| 4/4\n",
        "urls": {"get": f"https://api.replicate.com/v1/predictions/{run}{number}"},
    }
    return sign_request(json.dumps(prediction).encode(), f"msg_{run}_{number}", key)


def sign_request(body: bytes, webhook_id: str, key: bytes) -> bytes:
    """Return a request that is signed like Replicate's."""
    stamp = str(int(time.time()))
    signature = base64.b64encode(hmac.digest(key, f"{webhook_id}.{stamp}.".encode() + body, hashlib.sha256)).decode()
    head = (
        "POST /webhooks/replicate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"webhook-id: {webhook_id}\r\nwebhook-timestamp: {stamp}\r\nwebhook-signature: v1,{signature}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """The requests of one run and what was answered."""

    def __init__(self, port: int, requests: list[bytes], seconds: float, rate: float) -> None:
        self.port, self.requests, self.seconds, self.rate = port, requests, seconds, rate
        self.idle: collections.deque[Client] = collections.deque()
        self.statuses: collections.Counter[str] = collections.Counter()
        self.latencies: list[float] = []
        self.bodies: list[tuple[int, bytes]] = []
        self.sent = self.pending = 0
        self.started = self.last = 0.0

    def take_idle(self, client: "Client") -> None:
        """Give a connection its next request, if one is due."""
        now = time.perf_counter()
        if self.rate or not self.started:
            self.idle.append(client)
        elif now < self.started + self.seconds:
            self.send(client, now)

    def send(self, client: "Client", due: float) -> None:
        if self.sent < len(self.requests):
            self.pending += 1
            client.start(self.sent, due)
            self.sent += 1

    def record(self, number: int, due: float, status: str, body: bytes = b"") -> None:
        self.last = time.perf_counter()
        self.pending -= 1
        self.statuses[status] += 1
        if status in ("200", "202"):
            self.latencies.append(self.last - due)
            self.bodies.append((number, body))

    async def run(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port)
        self.started = time.perf_counter()
        if self.rate:
            await self._pace()
        else:
            while self.idle:
                self.send(self.idle.popleft(), time.perf_counter())
            while time.perf_counter() < self.started + self.seconds and self.sent < len(self.requests):
                await asyncio.sleep(0.01)
        end = time.perf_counter() + END_SECONDS
        while self.pending and time.perf_counter() < end:
            await asyncio.sleep(0.01)
        self.statuses["unanswered"] += self.pending

    async def _pace(self) -> None:
        count = min(int(self.rate * self.seconds), len(self.requests))
        while self.sent < count and time.perf_counter() < self.started + 2 * self.seconds:
            due = min(count, int((time.perf_counter() - self.started) * self.rate) + 1)
            while self.sent < due and self.idle:
                self.send(self.idle.popleft(), self.started + self.sent / self.rate)
            await asyncio.sleep(0.001)


class Client(asyncio.Protocol):
    """One connection, reopened when the server closes it."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""
        self.number: int | None = None
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.load.take_idle(self)

    def start(self, number: int, due: float) -> None:
        self.number, self.due, self.buffer = number, due, b""
        self.transport.write(self.load.requests[number])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        head = head.lower()
        if not found or len(body) < int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0):
            return
        number, self.number = self.number, None
        self.load.record(number or 0, self.due, head[9:12].decode(), body)
        if b"connection: close" in head:
            self.transport.close()
        else:
            self.load.take_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio calls it)
        if self.number is not None:
            self.load.record(self.number, self.due, "lost")
        if time.perf_counter() < self.load.started + 2 * self.load.seconds:
            loop = asyncio.get_running_loop()
            self.task = loop.create_task(loop.create_connection(lambda: Client(self.load), "127.0.0.1", self.load.port))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--secret", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--requests", type=int, help="of generated webhooks")
    parser.add_argument("--bodies", type=Path, help="the body of one webhook a line, in place of generated ones")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--accepted", type=Path, required=True)
    args = parser.parse_args()
    key = decode_secret(args.secret)
    if args.bodies:
        lines = args.bodies.read_bytes().splitlines()
        requests = [sign_request(body, f"msg_{args.run}_{number}", key) for number, body in enumerate(lines)]
    else:
        requests = [build_request(number, args.run, key) for number in range(args.requests)]
    load = Load(args.port, requests, args.seconds, args.rate)
    started_at = time.time()
    uvloop.run(load.run(args.connections))
    with args.accepted.open("w") as file:
        file.writelines(f"msg_{args.run}_{number}\t{body.decode().strip()}\n" for number, body in load.bodies)
    seconds = load.last - load.started
    result = {
        "accepted": len(load.bodies),
        "seconds": seconds,
        "started_at": started_at,
        "per_second": len(load.bodies) / seconds if seconds > 0 else 0.0,
        "statuses": {status: count for status, count in load.statuses.items() if count},
        "p50_ms": percentile(load.latencies, 0.5) * 1e3,
        "p99_ms": percentile(load.latencies, 0.99) * 1e3,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
