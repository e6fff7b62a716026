"""Sends wakes by task name; loads no task. A wake that cannot be sent is dropped: dispatch sends it again."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import amqp.exceptions
import kombu.exceptions
import redis.exceptions
from kombu import Connection

from moorage import logs, metrics
from moorage.failpoints import failpoint
from moorage.model import Wake
from worker import queues

log = logs.get_logger(__name__)

BROKER_ERRORS = (
    kombu.exceptions.KombuError,
    redis.exceptions.RedisError,
    amqp.exceptions.AMQPError,
    amqp.exceptions.MessageNacked,  # its own kind: RabbitMQ says no to one message
    OSError,
)

QUEUE_LENGTH: Final = 1000
PAUSE_SECONDS: Final = 1.0  # after a wake that the broker did not take


def publish_wake(wake: Wake) -> bool:
    """Publish one wake; return whether the broker took it. Takes about two seconds at most; never raises for it."""
    return publish_wakes([wake]) == 1


def publish_wakes(wakes: Iterable[Wake]) -> int:
    """Publish wakes over one connection until the broker refuses; return how many it took."""
    from worker.celery import app  # the app reads the settings: not before something is to be sent

    sent = 0
    try:
        with app.producer_pool.acquire(block=True, timeout=2) as producer, abandon_on_error(producer.connection):
            for item in wakes:
                failpoint(f"publish.before_{item.step}")
                app.send_task(
                    queues.TASK_BY_STEP[item.step],
                    args=[str(item.row_id)],
                    queue=queues.QUEUE_BY_STEP[item.step],
                    producer=producer,
                    ignore_result=True,
                    confirm_timeout=queues.CONFIRM_SECONDS,
                )
                failpoint(f"publish.after_{item.step}")
                sent += 1
    except BROKER_ERRORS as error:
        log.warning("wake.dropped", error=type(error).__name__, sent=sent)
    return sent


@contextmanager
def abandon_on_error(connection: Connection | None) -> Iterator[None]:
    """Drop a connection that failed inside without a goodbye: RabbitMQ out of memory or disk answers none, ever."""
    try:
        yield
    except BROKER_ERRORS:
        if connection is not None:
            connection.collect()
        raise


class WakeRelay:
    """A bounded queue and one thread. A wake that is dropped costs one tick of dispatch, nothing else."""

    def __init__(self, send: Callable[[Wake], bool] = publish_wake, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._send = send
        self._pause_seconds = pause_seconds
        self._wakes: queue.Queue[Wake] = queue.Queue(QUEUE_LENGTH)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def enqueue(self, *wakes: Wake) -> None:
        """Have wakes published soon; drop and count those for which there is no room."""
        for wake in wakes:
            try:
                self._wakes.put_nowait(wake)
            except queue.Full:
                metrics.WAKES_DROPPED.labels("full").inc()

    def stop(self, *, timeout_seconds: float = 2.0) -> None:
        """Publish what still waits, as long as the broker takes it, and end the thread."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._wakes.empty()):
            try:
                wake = self._wakes.get(timeout=0.2)
            except queue.Empty:
                continue
            if not self._publish(wake) and self._stopping.wait(self._pause_seconds):
                return

    def _publish(self, wake: Wake) -> bool:
        """Publish one wake: the outermost line of this thread, which must live as long as the process."""
        try:
            sent = self._send(wake)
        except Exception:
            log.error("wake.failed", exc_info=True, step=wake.step, row_id=wake.row_id)
            sent = False
        if sent:
            metrics.WAKES_SENT.inc()
        else:
            metrics.WAKES_DROPPED.labels("failed").inc()
        return sent
