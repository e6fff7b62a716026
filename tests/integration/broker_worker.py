"""A worker process on a broker of a test's own, and what shows that it works."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import redis

from db.connection import connect
from moorage import ids
from tests.integration import command_line as cli
from tests.integration.core import wait_until
from tests.support import fork_server
from tests.support.valkey import wake


class Broker(Protocol):
    """A broker that a test puts messages into."""

    def client(self) -> "redis.Redis":
        """Return a connection of the test's own."""


class Worker:
    """One worker process, as typed, on a Valkey of its own."""

    def __init__(self, process: fork_server.Forked, log: Path, database_url: str, broker: Broker) -> None:
        self.process, self.log, self.broker = process, log, broker
        self.conn = connect(database_url)

    def read(self, start: int = 0) -> str:
        """Return what was logged since a position."""
        return self.log.read_bytes()[start:].decode(errors="replace")

    @property
    def position(self) -> int:
        """Return the length of the log."""
        return self.log.stat().st_size

    def await_line(self, text: str, start: int) -> None:
        """Wait until the worker logged a text; it must not end meanwhile."""
        wait_until(lambda: text in self.read(start) or self.process.poll() is not None, seconds=120)
        assert self.process.poll() is None, self.read(start)[-3000:]

    def check_consumes(self) -> None:
        """Wait until the worker processes a message that is sent now."""
        row_id = ids.uuid7()
        self.conn.execute(
            "INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256) VALUES (%s, 'replicate', %s, %s, '')",
            (row_id, str(row_id), b"{}"),
        )
        with self.broker.client() as client:
            client.lpush("quick", wake("moorage.ingest", str(row_id)))
        look = "SELECT state FROM deliveries WHERE id = %s AND state <> 'new'"
        ended = self.process.poll
        wait_until(lambda: self.conn.execute(look, (row_id,)).fetchone() or ended() is not None, seconds=120)
        assert ended() is None, self.read()[-3000:]


@contextlib.contextmanager
def running(args: list[str], environment: dict[str, str], log: Path) -> Iterator[tuple[fork_server.Forked, Path]]:
    """Run `celery -A worker ARGS`, as typed."""
    with log.open("wb") as output:
        process = fork_server.popen(
            ["-m", "celery", "-A", "worker", *args], cwd=cli.ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        yield process, log
    finally:
        process.terminate()
        process.wait(120)
