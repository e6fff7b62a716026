"""Sends wakes by task name; loads no task. A wake that cannot be sent is dropped: dispatch sends it again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import amqp.exceptions
import kombu.exceptions
import redis.exceptions
from kombu import Connection

from moorage import logs
from moorage.failpoints import failpoint
from moorage.model import Wake
from worker import queues

log = logs.get(__name__)

BROKER_AWAY = (
    kombu.exceptions.KombuError,
    redis.exceptions.RedisError,
    amqp.exceptions.AMQPError,
    amqp.exceptions.MessageNacked,  # its own kind: RabbitMQ says no to one message
    OSError,
)


def wake(wake: Wake) -> bool:
    """Publish one wake; return whether the broker took it. Takes about two seconds at most; never raises for it."""
    return wake_all([wake]) == 1


def wake_all(wakes: Iterable[Wake]) -> int:
    """Publish wakes over one connection until the broker refuses; return how many it took."""
    from worker.celery import app  # the app reads the settings: not before something is to be sent

    sent = 0
    try:
        with app.producer_pool.acquire(block=True, timeout=2) as producer, abandoning(producer.connection):
            for item in wakes:
                failpoint(f"publish.before_{item.step}")
                app.send_task(
                    queues.TASK_OF[item.step],
                    args=[str(item.row_id)],
                    queue=queues.QUEUE_OF[item.step],
                    producer=producer,
                    ignore_result=True,
                    confirm_timeout=queues.CONFIRM_SECONDS,
                )
                failpoint(f"publish.after_{item.step}")
                sent += 1
    except BROKER_AWAY as error:
        log.warning("wake.dropped", error=type(error).__name__, sent=sent)
    return sent


@contextmanager
def abandoning(connection: Connection | None) -> Iterator[None]:
    """Drop a connection that failed inside without a goodbye: RabbitMQ out of memory or disk answers none, ever."""
    try:
        yield
    except BROKER_AWAY:
        if connection is not None:
            connection.collect()
        raise
