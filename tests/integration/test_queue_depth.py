"""The depth of a queue, which dispatch reads each second."""

import os
import signal
import sys
import threading
import types
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import amqp
import pytest
import redis
from celery import Celery

from embedded.stack import Stack
from moorage.model import Wake
from tests.integration import rabbitmq_broker as rabbit
from tests.support.rabbitmq import Rabbitmq
from worker import broker_transports, publish, queues


def use_broker(url: str, monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give the sweeps an application with a broker of the tests."""
    broker_transports.register_transports()
    app = Celery("depth", broker=url)
    app.conf.update(task_queues=queues.build_queues(url), task_create_missing_queues=False)
    monkeypatch.setitem(sys.modules, "worker.celery", types.SimpleNamespace(app=app))
    return app


def forget_connection() -> None:
    """Close the connection that this thread has kept."""
    app = sys.modules["worker.celery"].app
    publish._keep_connection(app, os.getpid(), threading.get_ident()).collect()


@pytest.fixture
def broker(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator["redis.Redis"]:
    """Give the Valkey of the tests."""
    url = stack.valkey.url(9)
    use_broker(url, monkeypatch)
    with redis.Redis.from_url(url) as client:
        yield client
        client.flushdb()
    forget_connection()
    publish._keep_connection.cache_clear()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbitmq]:
    """Give a RabbitMQ of these tests' own."""
    folder = tmp_path_factory.mktemp("rabbitmq")
    made = Rabbitmq(folder / "data", "secret-of-a-test", folder / "rabbitmq.log")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def threads(server: Rabbitmq, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ThreadPoolExecutor]]:
    """Give two threads that have read a depth from RabbitMQ before."""
    app = use_broker(server.url, monkeypatch)
    app.conf.update(broker_connection_timeout=2, broker_transport_options={"confirm_publish": True})
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}
    pools = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
    assert [pool.submit(publish.read_queue_depth, "keep").result(30) for pool in pools] == [0, 0]
    yield pools
    for pool in pools:
        with suppress(TimeoutError):
            pool.submit(forget_connection).result(5)
        pool.shutdown(wait=False)  # a thread that hangs ends with the server
    with app.producer_pool.acquire(block=True) as producer:  # the only one
        producer.connection.collect()
    publish._keep_connection.cache_clear()


@contextmanager
def stalled(server: Rabbitmq) -> Iterator[None]:
    """Let the broker accept everything and answer nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def count_connections(broker: "redis.Redis") -> int:
    return int(broker.info("stats")["total_connections_received"])  # type: ignore[index]


def test_reading_depths_keeps_its_connection(broker: "redis.Redis") -> None:
    """A connection a second, and package metadata for each, were a quarter of an idle worker's CPU time."""
    broker.lpush("keep", "a", "b")
    assert publish.read_queue_depth("keep") == 2
    before = count_connections(broker)

    assert [publish.read_queue_depth(queue) for queue in ("keep", "quick", "keep")] == [2, 0, 2]

    assert count_connections(broker) == before


def test_a_lost_connection_costs_at_most_one_tick(broker: "redis.Redis") -> None:
    """A restarted broker has closed the connection that was kept."""
    broker.lpush("quick", "a")
    assert publish.read_queue_depth("quick") == 1

    broker.client_kill_filter(_type="normal", skipme=True)

    assert publish.read_queue_depth("quick") in (None, 1)
    assert publish.read_queue_depth("quick") == 1


@rabbit.needs_rabbitmq
def test_two_threads_read_depths_at_once(threads: list[ThreadPoolExecutor], monkeypatch: pytest.MonkeyPatch) -> None:
    """py-amqp keeps one wait per channel and method: of two relays in a process, one waited for ever."""
    numbers, both_wait, first_has_read = count(), threading.Event(), threading.Event()
    drain = amqp.Connection.drain_events

    def drain_in_order(self: amqp.Connection, timeout: float | None = None) -> Any:
        match next(numbers):
            case 0:  # it has sent its question, and waits for the first answer
                both_wait.wait(5)
                drain(self, timeout)
                first_has_read.set()
            case 1:
                both_wait.set()
                first_has_read.wait(5)
                drain(self, timeout)
            case _:
                drain(self, timeout)

    monkeypatch.setattr(amqp.Connection, "drain_events", drain_in_order)
    asked = [pool.submit(publish.read_queue_depth, "keep") for pool in threads]

    assert [one.result(15) for one in asked] == [0, 0]


@rabbit.needs_rabbitmq
def test_a_broker_that_answers_nothing_has_no_depth(threads: list[ThreadPoolExecutor], server: Rabbitmq) -> None:
    """py-amqp waits for ever: relays, children after a commit and the child of the sweeps did until it answered."""
    thread, _ = threads
    with stalled(server):
        assert thread.submit(publish.read_queue_depth, "keep").result(15) is None  # 2 s

    assert thread.submit(publish.read_queue_depth, "keep").result(30) == 0


@rabbit.needs_rabbitmq
def test_a_broker_that_answers_nothing_is_sent_nothing(threads: list[ThreadPoolExecutor], server: Rabbitmq) -> None:
    """Only a message had a limit to its confirmation: the queue that is declared before it had none."""
    thread, _ = threads
    ingest, keep = [Wake("ingest", uuid.uuid4())], [Wake("keep", uuid.uuid4())]
    assert thread.submit(publish.send_wakes, ingest).result(30) == 1
    with stalled(server):
        assert thread.submit(publish.send_wakes, keep).result(25) == 0  # 6 s: it connects anew, twice

    assert thread.submit(publish.send_wakes, keep).result(30) == 1
