"""The drain of dead-letter queues, on a real Valkey: rows that live are woken, what names none is a dead letter."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from kombu import Connection as Broker
from kombu import Producer, Queue

from embedded.stack import Stack
from tests.integration.core import World, database_of, world
from tests.support import fork_server

DRAIN = """
import json
from worker import boot
from worker import dead_letter_queues
deps = boot.get_deps()
print(json.dumps([dead_letter_queues.drain_queues(deps, "drainer"), dead_letter_queues.drain_queues(deps, "drainer")]))
"""


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "drain")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture
def broker(stack: Stack) -> Iterator[Broker]:
    """Give a Valkey database of our own."""
    with Broker(f"{stack.valkey.url().removesuffix('/0')}/7") as connection:
        connection.default_channel.client.flushdb()
        yield connection


def drop(broker: Broker, body: bytes, task: str) -> None:
    """Put a message where a worker puts what Celery would drop."""
    queue = Queue("quick.dead", routing_key="quick.dead", durable=True)
    Producer(broker).publish(
        body,
        routing_key="quick.dead",
        declare=[queue],
        content_type="application/octet-stream",
        content_encoding="binary",
        headers={"why": "cannot be decoded", "task": task},
    )


def drained(at: World, stack: Stack, broker: Broker, root: Path) -> list[dict[str, int]]:
    environment = {**os.environ, **stack.environment(), "DATABASE_URL": at.database_url}
    environment["CELERY_BROKER_URL"] = broker.as_uri(include_password=True)
    done = fork_server.run(["-c", DRAIN], cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wake(row_id: object) -> bytes:
    return json.dumps([[str(row_id)], {}, {}]).encode()


def test_dead_letter_queues_are_drained(at: World, stack: Stack, broker: Broker, project_root: Path) -> None:
    """No message is lost in silence, and none makes noise that means nothing."""
    live, kept = (at.outputs(at.keeping([at.source.picture()]).job_id)[0] for _ in range(2))
    at.step("keep", kept)
    drop(broker, wake(live), "moorage.keep")
    drop(broker, wake(kept), "moorage.keep")
    drop(broker, wake(uuid4()), "moorage.keep")
    drop(broker, wake(live), "someone.elses")
    drop(broker, b"\x80\x04 not json \x00", "")
    drop(broker, b'[["dispatch"], {}, {}]', "moorage.sweep")

    first, second = drained(at, stack, broker, project_root)

    assert first == {"woken": 1, "dead_letters": 3}
    assert second == {"woken": 0, "dead_letters": 0}
    letters = at.letters()
    assert {(letter["subject"], letter["error"]) for letter in letters} == {("message", "DroppedMessage")}
    assert all(letter["facts"]["queue"] == "quick.dead" for letter in letters)
    assert broker.default_channel.client.llen("keep") == 1


def test_the_same_message_twice_is_one_dead_letter(at: World, stack: Stack, broker: Broker, project_root: Path) -> None:
    """A message that is redelivered is no second fault."""
    body = b"rubbish"
    drop(broker, body, "")
    drop(broker, body, "")

    drained(at, stack, broker, project_root)

    assert len(at.letters()) == 1
