"""Check broker, queues and workers concurrently, with a timeout."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import amqp.exceptions

from worker import broker_transports, queues
from worker.broker_errors import BROKER_ERRORS, explain

PING_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 1.0  # if a queue seems to have no worker: a busy one answers late. Above 1 kombu takes 2
CONNECT_SECONDS: Final = 3
PROBE_SECONDS: Final = 60  # then the broker deletes what an interrupted probe left
_BEAT: Final = "celerybeat@"  # beat answers pings too, but is not a worker
ALL_QUEUES: Final = tuple(name for queue in queues.QUEUES for name in (queue, queues.dead_letter_queue_name(queue)))


def call_concurrently(calls: Mapping[str, Callable[[], Any]], *, seconds: float) -> dict[str, Any]:
    """Return the results that arrive within the time, by name; calls that hang are abandoned."""
    results: dict[str, Any] = {}

    def store_result(name: str, call: Callable[[], Any]) -> None:
        results[name] = call()

    # Daemon threads: the interpreter would wait for the threads of a pool at exit.
    threads = [threading.Thread(target=store_result, args=item, daemon=True) for item in calls.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return dict(results)


def read_queue_depths() -> dict[str, int] | str:
    """Return the number of messages in each queue and dead-letter queue; else why the broker does not report them."""
    from worker.celery import app  # the app reads the settings: only when it is needed

    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            return {name: _depth(connection, name) for name in ALL_QUEUES}
    except BROKER_ERRORS as error:
        return explain(error).what


def _depth(connection: Any, name: str) -> int:
    try:
        with connection.channel() as channel:  # RabbitMQ closes a channel after an error
            return int(channel.queue_declare(queue=name, passive=True).message_count)
    except amqp.exceptions.ChannelError:  # an empty queue does not exist on Redis
        return 0


def list_consumers() -> dict[str, list[str]] | None:
    """Return the queues of each worker that answers within two seconds; None while the broker is unavailable."""
    from worker.celery import app

    consumers: dict[str, list[str]] = {}
    try:
        for seconds in (PING_SECONDS, AGAIN_SECONDS):
            replies: dict[str, Any] = app.control.inspect(timeout=seconds).active_queues() or {}
            workers = {name: reply for name, reply in sorted(replies.items()) if not name.startswith(_BEAT)}
            consumers |= {name: sorted(queue["name"] for queue in reply) for name, reply in workers.items()}
            if all(count_consumers(consumers).values()):
                break
    except BROKER_ERRORS:
        return None
    return consumers


def read_pool_sizes() -> dict[str, int]:
    """Return how many rows each worker that answers within a second can work on at once."""
    from worker.celery import app

    try:
        replies: dict[str, Any] = app.control.inspect(timeout=PING_SECONDS).stats() or {}
    except BROKER_ERRORS:
        return {}
    return {name: int(reply["pool"]["max-concurrency"]) for name, reply in replies.items() if "pool" in reply}


def count_consumers(consumers: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many workers consume each queue."""
    counts = Counter(queue for names in consumers.values() for queue in names)
    return {queue: counts[queue] for queue in queues.QUEUES}


def find_refusal(url: str) -> str | None:
    """Return why the broker takes no messages, although it may answer; None if it does. Of RabbitMQ the connection."""
    if url.startswith("memory://"):
        return None
    try:
        if url.startswith(("amqp://", "amqps://")):
            with broker_transports.open_connection(url, seconds=CONNECT_SECONDS):
                return None
        with broker_transports.open_client(url, seconds=CONNECT_SECONDS) as client:
            write_probe(client)
    except BROKER_ERRORS as error:
        return explain(error).what
    return None


def write_probe(client: Any) -> None:
    """Send and receive a message, and use the other commands of a worker that a server may refuse."""
    key = f"moorage.doctor.{uuid4()}"
    commands: list[tuple[str, str, tuple[Any, ...]]] = [
        ("LPUSH", key, ("probe",)),
        ("HSET", f"{key}.hash", ("a", "b")),
        ("SADD", f"{key}.set", ("a",)),
        ("ZADD", f"{key}.index", (1, "a")),
    ]
    for command, name, values in commands:
        client.execute_command(command, name, *values)
        client.expire(name, PROBE_SECONDS)
    client.execute_command("BRPOP", key, 1)
    client.publish(key, "probe")
    with client.pipeline(transaction=True) as acknowledgement:
        acknowledgement.zrem(f"{key}.index", "a").hdel(f"{key}.hash", "a")
        acknowledgement.delete(*(name for _, name, _ in commands)).execute()
