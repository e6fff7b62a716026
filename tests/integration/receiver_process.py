"""A real receiver with a real PostgreSQL: granian as a process, raw sockets, signed requests."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg.rows import dict_row

from db import connection, migrate
from embedded import ports
from embedded.postgres import Postgres
from tests.support import fork_server

ROOT = Path(__file__).resolve().parents[2]
KEY = b"moorage-tests-sign-with-this-key"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
Reply = tuple[int, dict[str, str], bytes]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Postgres]:
    """Run a separate, migrated PostgreSQL, which the test may stop and start."""
    postgres = Postgres(folder / "postgres18", "secret-of-the-tests", folder / "postgres.log")
    postgres.start()
    try:
        conn = connection.connect(postgres.create_database("moorage"))
        migrate.migrate(conn)
        conn.close()
        yield postgres
    finally:
        postgres.stop()


def rows(url: str, sql: str) -> list[dict[str, Any]]:
    """Return the rows of a query."""
    with psycopg.connect(url, row_factory=dict_row) as conn:
        return conn.execute(sql.encode()).fetchall()


def until(state: Callable[[], bool], *, seconds: float = 40.0) -> None:
    """Wait for a state, with a deadline."""
    end = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < end, "the state did not come"
        time.sleep(0.02)


def signed(body: bytes, *, webhook_id: str, at: float | None = None) -> dict[str, str]:
    """Return the headers with which a provider signs any bytes; the library signs text only."""
    stamp = str(int(time.time() if at is None else at))
    message = f"{webhook_id}.{stamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(KEY, message, hashlib.sha256)).decode()
    return {"webhook-id": webhook_id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{signature}"}


class Receiver:
    """A receiver process, its log and its address."""

    app = "receiver.app:app"

    def __init__(self, log: IO[bytes], url: str, **settings: str) -> None:
        self.port, self.metrics_port = ports.reserve(2)
        command = ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1", "--loop", "uvloop", "--no-access-log"]
        command += ["--workers-kill-timeout", "40", self.app]
        self._log = log
        self.process = fork_server.popen(
            command, cwd=ROOT / "tests", env=self._environment(url, settings), stdout=log, stderr=log
        )

    def _environment(self, url: str, settings: dict[str, str]) -> dict[str, str]:
        return environment(url, **{"MOORAGE_METRICS_ADDRESS": f"127.0.0.1:{self.metrics_port}", **settings})

    def log(self) -> str:
        """Return its log output so far."""
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode()  # the process writes at the position we would seek

    def await_ready(self) -> None:
        """Wait until it responds."""
        until(lambda: self.process.poll() is not None or self._answers(), seconds=90)
        assert self.process.poll() is None, self.log()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call("GET", "/healthz")[0] == 200
        return False

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request and return status, headers (names in lower case) and body."""
        return self._call(self.port, method, path, body, headers)

    def scrape(self) -> Reply:
        """Read /metrics at its own address."""
        return self._call(self.metrics_port, "GET", "/metrics", None, None)

    def _call(self, port: int, method: str, path: str, body: bytes | None, headers: dict[str, str] | None) -> Reply:
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            conn.request(method, path, body, headers or {})
            reply = conn.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            conn.close()

    def post(self, body: bytes, *, webhook_id: str, path: str = "/webhooks/replicate") -> Reply:
        """Send a correctly signed webhook."""
        return self.call("POST", path, body, signed(body, webhook_id=webhook_id))

    def connect(self) -> socket.socket:
        """Return a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=40)

    def metric(self, name: str) -> float:
        """Return one series of /metrics by its exact name; 0 if it is missing."""
        text = self.scrape()[2].decode()
        return next((float(line.split(" ")[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)

    def stop(self) -> int:
        """Stop it as an orchestrator would and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def starting(url: str, **settings: str) -> Iterator[Receiver]:
    """Start a receiver; stop it, if it still runs, when the block ends."""
    with tempfile.TemporaryFile() as log:
        receiver = Receiver(log, url, **settings)
        try:
            yield receiver
        finally:
            if receiver.process.poll() is None:
                receiver.stop()


@contextlib.contextmanager
def running(url: str, **settings: str) -> Iterator[Receiver]:
    """Run a receiver until the block ends; it is ready at its start."""
    with starting(url, **settings) as receiver:
        receiver.await_ready()
        yield receiver


def environment(url: str, **settings: str) -> dict[str, str]:
    """
    Return the environment of a receiver: nothing of the tests' own; a broker that is not there.

    It is patient: on a busy computer a commit may take longer than the three seconds that senders are answered in.
    """
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": url,
        "CELERY_BROKER_URL": "redis://127.0.0.1:9/0",
        "REPLICATE_WEBHOOK_SECRET": SECRET,
        "MOORAGE_DEV_ANSWER_SECONDS": "20",
        **settings,
    }


def read_reply(conn: socket.socket) -> bytes:
    """Return the bytes that arrive until the connection closes or the response is complete."""
    reply = http.client.HTTPResponse(conn)
    reply.begin()
    return f"{reply.status} ".encode() + reply.read()
