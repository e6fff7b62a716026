"""Wakes, queue depths and dead-letter queues on fakeredis: the protocol of Redis in a thread of this process."""

import json
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import pytest
import redis

from moorage import settings
from moorage.model import Wake
from worker import inspect_cluster, publish, queues

LIVE, ENDED = uuid4(), uuid4()
OURS = ("worker.celery", "worker.dead_letter_queues")  # they make the app, or name it
EMPTY = dict.fromkeys(inspect_cluster.ALL_QUEUES, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[fakeredis.TcpFakeServer]:
    with fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="valkey") as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def app(server: fakeredis.TcpFakeServer) -> Iterator[Any]:
    """Return the Celery application with this broker, made anew and forgotten afterwards."""
    url = f"redis://127.0.0.1:{server.server_address[1]}/0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_BROKER_URL", url)
        patch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
        patch.setattr("kombu.transport._transport_cache", {})  # other tests connected with kombu's own
        for name in OURS:
            patch.delitem(sys.modules, name, raising=False)
        settings.get_settings.cache_clear()
        from worker.celery import app as made

        yield made
        made.close()
        settings.get_settings.cache_clear()
        for name in OURS:
            sys.modules.pop(name, None)


@pytest.fixture
def broker(app: Any, server: fakeredis.TcpFakeServer) -> Iterator[redis.Redis]:
    """Return a client of the broker, which is empty."""
    with redis.Redis(port=server.server_address[1]) as client:
        client.flushall()
        yield client


@pytest.fixture
def recorded(broker: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the dead letters that are added to a database of two outputs."""
    states = {LIVE: "waiting", ENDED: "kept"}
    added: list[dict[str, Any]] = []

    def add(_: None, subject: str, subject_id: UUID, decision: Any, **more: Any) -> None:
        added.append({"id": subject_id, "reason": decision.reason, **more["facts"]})

    monkeypatch.setattr("db.leases.get_state", lambda _conn, _table, row_id: states.get(row_id))
    monkeypatch.setattr("db.dead_letters.add", add)
    return added


def drain() -> dict[str, Any]:
    from worker import dead_letter_queues

    deps: Any = SimpleNamespace(database=SimpleNamespace(run=lambda work: work(None)))
    return dead_letter_queues.drain_queues(deps, "drainer")


def drop(broker: redis.Redis, body: bytes, task: str, queue: str = "quick") -> None:
    """Put a message where a worker puts what Celery would drop."""
    from worker.celery import app

    with app.connection_for_write() as connection:
        connection.Producer().publish(
            body,
            routing_key=queues.dead_letter_queue_name(queue),
            declare=[queues.dead_letter_queue(queue)],
            content_type="application/octet-stream",
            content_encoding="binary",
            headers={"why": "cannot be decoded", "task": task},
        )


def wake(row_id: UUID) -> bytes:
    return json.dumps([[str(row_id)], {}, {}]).encode()


@pytest.mark.parametrize("count", [1, 3])
def test_a_wake_names_the_task_and_the_row_in_the_queue_of_its_step(broker: redis.Redis, count: int) -> None:
    """One is published alone, several in one batch: a worker cannot tell them apart."""
    wakes = [Wake("keep", uuid4()) for _ in range(count)]

    sent = publish.publish_wakes(wakes)

    entries = [json.loads(entry) for entry in reversed(broker.lrange("keep", 0, -1))]
    assert sent == count
    assert [entry["headers"]["task"] for entry in entries] == ["moorage.keep"] * count
    assert [entry["headers"]["argsrepr"] for entry in entries] == [f"['{item.row_id}']" for item in wakes]
    assert inspect_cluster.read_queue_depths() == {**EMPTY, "keep": count}


def test_direct_wakes_fill_a_queue_to_its_depth(broker: redis.Redis) -> None:
    """`moorage keep` put 190 wakes into a queue that holds 64; whoever publishes leaves the rest to dispatch."""
    wakes = [Wake("keep", uuid4()) for _ in range(200)]

    assert publish.publish_wakes([*wakes, Wake("poll", uuid4())]) == 201
    assert inspect_cluster.read_queue_depths() == {**EMPTY, "keep": 64, "quick": 1}
    assert [publish.publish_wakes([wake]) for wake in wakes[:3]] == [1, 1, 1]
    assert inspect_cluster.read_queue_depths() == {**EMPTY, "keep": 64, "quick": 1}
    assert publish.publish_wakes([Wake("generate", uuid4())]) == 1, "a free place at a provider"
    assert inspect_cluster.read_queue_depths() == {**EMPTY, "keep": 65, "quick": 1}
    assert publish.send_wakes(wakes[:4]) == 4, "discards proceed while the queue stays full"
    assert inspect_cluster.read_queue_depths() == {**EMPTY, "keep": 69, "quick": 1}


def test_wakes_of_several_steps_go_to_their_queues(broker: redis.Redis) -> None:
    """A poll must not wait behind downloads."""
    steps = list(queues.QUEUE_BY_STEP)

    publish.publish_wakes([Wake(step, uuid4()) for step in steps])

    depths = inspect_cluster.read_queue_depths()
    assert depths == {**EMPTY, **{name: list(queues.QUEUE_BY_STEP.values()).count(name) for name in queues.QUEUES}}


def test_a_live_row_is_woken_and_an_ended_one_is_not(broker: redis.Redis, recorded: list[dict[str, Any]]) -> None:
    """What was rejected may still be work to do."""
    drop(broker, wake(LIVE), "moorage.keep", "keep")
    drop(broker, wake(ENDED), "moorage.keep", "keep")

    counts = drain()

    assert (counts, recorded) == ({"woken": 1, "dead_letters": 0}, [])
    assert inspect_cluster.read_queue_depths() == {**EMPTY, "keep": 1}


@pytest.mark.parametrize(
    ("body", "task"),
    [
        (wake(uuid4()), "moorage.keep"),
        (wake(LIVE), "no.such.task"),
        (b"\x80\x04 no JSON \x00", ""),
        (b"[]", "moorage.keep"),
    ],
    ids=["no row", "no task", "no JSON", "no arguments"],
)
def test_a_message_of_no_row_is_a_dead_letter(
    broker: redis.Redis, recorded: list[dict[str, Any]], body: bytes, task: str
) -> None:
    """No message is lost in silence."""
    drop(broker, body, task)

    counts = drain()

    assert counts == {"woken": 0, "dead_letters": 1}
    assert [(one["queue"], one["task"], one["bytes"]) for one in recorded] == [("quick.dead", task, len(body))]
    assert inspect_cluster.read_queue_depths() == EMPTY


@pytest.mark.parametrize("entry", [b"null", b"[]", b"1", b"{}", b"\xff{", b"[" * 100_000])
def test_an_entry_that_is_no_message_is_a_dead_letter(
    broker: redis.Redis, recorded: list[dict[str, Any]], entry: bytes
) -> None:
    """It stopped the drain, and with it every later message."""
    broker.lpush("quick.dead", entry)
    drop(broker, wake(LIVE), "moorage.keep")

    assert drain() == {"woken": 1, "dead_letters": 1}


def test_equal_messages_have_one_id_and_an_expired_tick_none(
    broker: redis.Redis, recorded: list[dict[str, Any]]
) -> None:
    """A message that is redelivered is no second fault; beat sends the next tick by itself."""
    for body, task in ((b"rubbish", ""), (b"rubbish", ""), (b'[["dispatch"], {}, {}]', "moorage.sweep")):
        drop(broker, body, task)

    drain()

    assert len(recorded) == 2
    assert len({one["id"] for one in recorded}) == 1


def test_a_message_that_is_not_recorded_stays(
    broker: redis.Redis, recorded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is acknowledged after its dead letter is committed: what fails before that finds it again."""
    drop(broker, b"rubbish", "")
    with monkeypatch.context() as patch:
        patch.setattr("db.dead_letters.add", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drain()

    assert drain() == {"woken": 0, "dead_letters": 1}
