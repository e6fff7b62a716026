"""A RabbitMQ that tests look at and put messages into, beside the processes that use it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection, Producer

from tests.support import rabbitmq
from worker import queues

needs_rabbitmq = pytest.mark.skipif(rabbitmq.find() is None, reason="no RabbitMQ is installed")


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Give a connection of the test's own."""
    with Connection(url, connect_timeout=30, transport_options={"confirm_publish": True}) as connection:
        yield connection


def depth(url: str, name: str) -> int:
    """Return how many messages wait in a queue."""
    with connected(url) as connection:
        return int(connection.default_channel.queue_declare(name, passive=True).message_count)


def purge(url: str) -> None:
    """Empty every queue."""
    with connected(url) as connection:
        for name in queues.QUEUES:
            connection.default_channel.queue_purge(name)


def push(url: str, queue: str, body: bytes, **headers: Any) -> None:
    """Put a message into a queue as Celery would."""
    with connected(url) as connection:
        Producer(connection).publish(
            body,
            exchange=queue,
            routing_key=queue,
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
            correlation_id=str(uuid4()),
        )


def push_task(url: str, queue: str, task: str, *args: Any) -> None:
    """Put a task into a queue."""
    body = json.dumps([list(args), {}, {"callbacks": None}]).encode()
    push(url, queue, body, lang="py", task=task, id=str(uuid4()), argsrepr="()", kwargsrepr="{}")


def die_holding(url: str, queue: str) -> list[str]:
    """Take every message of a queue and lose the connection, as a killed consumer does; returns their task ids."""
    connection = Connection(url, connect_timeout=30)
    channel = connection.channel()
    held = []
    while (message := channel.basic_get(queue)) is not None:
        held.append(str(message.headers["id"]))
    connection.collect()  # closes the socket without a word to the broker
    return held
