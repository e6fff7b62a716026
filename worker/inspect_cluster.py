"""Who is there: the broker and its queues, the workers, storage; each asked at once and none waited for too long."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import amqp.exceptions

from worker import queues
from worker.publish import BROKER_ERRORS

PING_SECONDS: Final = 1.0
_BEAT: Final = "celerybeat@"  # beat answers a ping as well, but does no work
ALL_QUEUES: Final = tuple(name for queue in queues.QUEUES for name in (queue, queues.dead_letter_queue_name(queue)))


def call_concurrently(asks: Mapping[str, Callable[[], Any]], *, seconds: float) -> dict[str, Any]:
    """Return the answers that came within the time, by name; a question that hangs is left behind."""
    answers: dict[str, Any] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        answers[name] = question()

    # Daemon threads: a pool's would be waited for at the exit.
    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in asks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return dict(answers)


def read_queue_depths() -> dict[str, int] | None:
    """Return how many messages wait in each queue and each dead-letter queue; None when the broker is away."""
    from worker.celery import app  # the app reads the settings: not before something is asked

    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            return {name: _depth(connection, name) for name in ALL_QUEUES}
    except BROKER_ERRORS:
        return None


def _depth(connection: Any, name: str) -> int:
    try:
        with connection.channel() as channel:  # RabbitMQ closes a channel on which it says no
            return int(channel.queue_declare(queue=name, passive=True).message_count)
    except amqp.exceptions.ChannelError:  # an empty queue does not exist on Redis
        return 0


def ping_workers() -> list[str] | None:
    """Return the names of the workers that answer within a second; None when the broker is away."""
    from worker.celery import app

    try:
        answers: list[dict[str, Any]] = app.control.ping(timeout=PING_SECONDS) or []
    except BROKER_ERRORS:
        return None
    return sorted(name for answer in answers for name in answer if not name.startswith(_BEAT))
