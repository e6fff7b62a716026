"""The start of a worker while storage is silent: what needs no storage runs."""

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from db.connection import Connection
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import receiver_process as rp
from tests.integration.worker_process import running_worker
from tests.support import fork_server

NEW = """
INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256)
VALUES (gen_random_uuid(), 'replicate', 'boot', '{}', '') RETURNING id
"""


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Give the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("flags", "database"), [(["-Q", "quick"], 11), ([], 12)], ids=["quick", "both queues"])
def test_webhooks_are_ingested_while_storage_is_silent(
    stack: Stack, database_url: str, deps: Deps, conn: Connection, flags: list[str], database: int
) -> None:
    """59 webhooks waited for 168 s, and no sweep ran, because the storage did not answer a worker that needs none."""
    broker = stack.valkey.url(database)
    row = conn.execute(NEW).fetchone()
    assert row is not None
    with Celery(broker=broker, set_as_current=False) as app:
        app.send_task("moorage.ingest", args=[str(row["id"])], queue="quick")
        app.send_task("moorage.sweep", args=["reconcile"], queue="quick")

    with silent_server() as storage:
        env = cli.environment(stack, database_url, CELERY_BROKER_URL=broker, AWS_ENDPOINT_URL_S3=storage)
        with running_worker(env, *flags):
            rp.until(lambda: state(conn) != "new", seconds=120)
            rp.until(lambda: conn.execute("SELECT 1 FROM ticks WHERE finished_at IS NOT NULL").fetchone() is not None)


def state(conn: Connection) -> str:
    row = conn.execute("SELECT state FROM deliveries").fetchone()
    return str(row["state"]) if row else ""


def test_a_worker_that_waits_for_postgresql_is_alive_and_ends_at_sigterm(
    stack: Stack, database_url: str, tmp_path: Path
) -> None:
    """Kubernetes killed it while PostgreSQL was away; and as process 1 it ignored SIGTERM, without a handler."""
    alive = tmp_path / "alive"
    env = cli.environment(stack, "postgresql://u@127.0.0.1:1/none", MOORAGE_ALIVE_FILE=str(alive))

    with (tmp_path / "log").open("wb") as log:
        command = ["-m", "cli.main", "worker", "-Q", "sweeps"]
        worker = fork_server.popen(command, cwd=cli.ROOT, env=env, stdout=log, stderr=log)
    try:
        for _ in range(2):
            rp.until(lambda: worker.poll() is not None or alive.exists(), seconds=30)
            alive.unlink()
    finally:
        worker.send_signal(signal.SIGTERM)

    assert worker.wait(60) == 0  # an exit of its own
