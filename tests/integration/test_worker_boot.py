"""The start of a worker while storage is silent: what needs no storage runs."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from celery import Celery

from db.connection import Connection
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import receiver_process as rp
from tests.integration.worker_process import running_worker

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
