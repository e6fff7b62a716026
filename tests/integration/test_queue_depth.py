"""The depth of a queue, which dispatch reads each second."""

import os
import sys
import types
from collections.abc import Iterator

import pytest
import redis
from celery import Celery

from embedded.stack import Stack
from worker import publish, queues, redis_transport


@pytest.fixture
def broker(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator["redis.Redis"]:
    """Give the sweeps an application with the broker of the tests."""
    url = stack.valkey.url(9)
    redis_transport.register_transports()
    app = Celery("depth", broker=url)
    app.conf.update(task_queues=queues.build_queues(url), task_create_missing_queues=False)
    monkeypatch.setitem(sys.modules, "worker.celery", types.SimpleNamespace(app=app))
    with redis.Redis.from_url(url) as client:
        yield client
        client.flushdb()
    publish._keep_connection(app, os.getpid()).release()
    publish._keep_connection.cache_clear()


def count_connections(broker: "redis.Redis") -> int:
    return int(broker.info("stats")["total_connections_received"])  # type: ignore[index]


def test_reading_depths_keeps_its_connection(broker: "redis.Redis") -> None:
    """A connection a second, and package metadata for each, were a quarter of an idle worker's CPU time."""
    broker.lpush("keep", "a", "b")
    assert publish.get_queue_depth("keep") == 2
    before = count_connections(broker)

    assert [publish.get_queue_depth(queue) for queue in ("keep", "quick", "keep")] == [2, 0, 2]

    assert count_connections(broker) == before


def test_a_lost_connection_costs_at_most_one_tick(broker: "redis.Redis") -> None:
    """A restarted broker has closed the connection that was kept."""
    broker.lpush("quick", "a")
    assert publish.get_queue_depth("quick") == 1

    broker.client_kill_filter(_type="normal", skipme=True)

    assert publish.get_queue_depth("quick") in (None, 1)
    assert publish.get_queue_depth("quick") == 1
