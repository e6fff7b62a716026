"""Publish wakes by task name, without loading tasks. A wake that is not sent is dropped: dispatch sends it again."""

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from kombu import Connection
from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # not in the stubs
from kombu.utils.uuid import uuid

from moorage import logs, metrics
from moorage import settings as settings_module
from moorage.failpoints import failpoint
from moorage.model import Queue, Wake
from worker import queues
from worker.broker_errors import BROKER_ERRORS, explain

log = logs.get_logger(__name__)

QUEUE_LENGTH: Final = 1000
GATHER_SECONDS: Final = 0.05  # after a batch of the relay, which takes the GIL from the event loop
PAUSE_SECONDS: Final = 1.0  # after a wake that the broker did not accept


def publish_wakes(wakes: Iterable[Wake]) -> int:
    """
    Publish wakes while their queue has room, and leave the others to dispatch; return how many are either.

    Those of a free place at a provider go to a full queue, too: there are no more of them than places, and dispatch
    would repeat them only after 30 s, since their rows are marked as woken.
    Raises no broker error; a broker that does not answer takes seconds.
    """
    within, left = list[Wake](), 0
    room: dict[Queue, int] = {}
    for wake in wakes:
        queue_name = queues.QUEUE_BY_STEP[wake.step]
        if queue_name not in room:
            depth = read_queue_depth(queue_name)
            if depth is None:
                log.warning("wake.dropped", what="the broker is unavailable", sent=0)
                return 0
            room[queue_name] = settings_module.get_settings().constants.queue_depth - depth
        room[queue_name] -= 1
        if room[queue_name] >= 0 or wake.step in ("submit", "generate"):
            within.append(wake)
        else:
            left += 1
    return left + send_wakes(within) if within else left


def send_wakes(wakes: Iterable[Wake]) -> int:
    """
    Publish wakes over one connection until the broker fails, whatever is in their queue; return how many it accepted.

    Raises no broker error; a broker that does not answer takes about two seconds, on RabbitMQ six.
    """
    from worker.celery import app  # the app reads the settings: only when it is needed

    wakes, sent = list(wakes), 0
    pool: Any = app.producer_pool  # the stubs know no batches
    try:
        with pool.acquire(block=True, timeout=2) as producer, abandon_on_error(producer.connection):
            if len(wakes) > 1 and producer.supports_batch_publish:  # Redis: in one round trip
                with suppress(BatchPublishError):  # then one by one: a repeated wake costs an empty claim
                    with producer.batch():
                        for item in wakes:
                            _publish(app, producer, item, retry=False)
                    sent = len(wakes)
            for item in wakes[sent:]:
                _publish(app, producer, item, retry=True)
                sent += 1
    except BROKER_ERRORS as error:
        log.warning("wake.dropped", error=type(error).__name__, what=explain(error).what, sent=sent)
    for item in wakes[:sent]:
        failpoint(f"publish.after_{item.step}")
    return sent


def _publish(app: Any, producer: Any, item: Wake, *, retry: bool) -> None:
    """
    Publish Celery's message without its `send_task`, which takes four times as long.

    `retry`: declare the queue and reconnect if needed; in a batch that would change its channel.
    """
    failpoint(f"publish.before_{item.step}")
    row_id, queue = str(item.row_id), app.amqp.queues[queues.QUEUE_BY_STEP[item.step]]
    headers, properties, body, _ = app.amqp.create_task_message(
        uuid(),
        queues.TASK_BY_STEP[item.step],
        args=[row_id],
        argsrepr=f"['{row_id}']",
        kwargsrepr="{}",
        ignore_result=True,
        reply_to=app.thread_oid,
    )
    producer.publish(
        body,
        routing_key=queue.name,
        declare=[queue] if retry else None,
        serializer="json",
        headers=headers,
        retry=retry,
        retry_policy=app.conf.task_publish_retry_policy,
        confirm_timeout=queues.CONFIRM_SECONDS,
        **properties,
    )


def publish_ingest_wakes(wakes: Sequence[Wake]) -> int:
    """Publish one wake for each batch of deliveries, whose task claims the others; return how many that wakes."""
    named = wakes[:: queues.INGEST_ROWS]
    return len(wakes) if publish_wakes(named) == len(named) else 0


def read_queue_depth(queue: Queue) -> int | None:
    """Return the number of messages in a queue; None while the broker is unavailable."""
    from worker.celery import app  # the app reads the settings: only when it is needed

    try:
        connection = _keep_connection(app, os.getpid(), threading.get_ident())
        with abandon_on_error(connection):
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            declared: Any = app.amqp.queues[queue](connection.default_channel).queue_declare()
            return int(declared.message_count)
    except BROKER_ERRORS as error:
        log.warning("broker.unavailable", what=explain(error).what)
        return None


@functools.lru_cache(maxsize=8)
def _keep_connection(app: Any, _pid: int, _thread: int) -> Connection:
    """Return a connection of its own: RabbitMQ blocks those that publish while it is out of memory or disk."""
    # One for each thread: of two that wait for an answer over one connection, py-amqp lets one wait for ever.
    connection: Connection = app.connection_for_write()
    return connection


@contextmanager
def abandon_on_error(connection: Connection | None) -> Iterator[None]:
    """Discard a connection that failed, without closing it: RabbitMQ out of memory or disk never answers a close."""
    try:
        yield
    except BROKER_ERRORS:
        if connection is not None:
            connection.collect()
        raise


class WakeRelay:
    """Publish wakes from a bounded queue in one thread. A dropped wake is delayed to the next dispatch."""

    def __init__(
        self, send: Callable[[Sequence[Wake]], int] = publish_wakes, *, pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        self._send = send
        self._pause_seconds = pause_seconds
        self._wakes: deque[Wake] = deque()
        self._waiting = threading.Event()  # a wake waits, or the relay is stopping
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def enqueue(self, *wakes: Wake) -> None:
        """Queue wakes without blocking; drop and count those that exceed the queue."""
        for wake in wakes:
            if len(self._wakes) < QUEUE_LENGTH:
                self._wakes.append(wake)
            else:
                metrics.WAKES_DROPPED.labels("full").inc()
        if not self._waiting.is_set():  # it is during a burst, and setting it takes a lock
            self._waiting.set()

    def stop(self, *, timeout_seconds: float = 2.0) -> None:
        self._stopping.set()
        self._waiting.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping.is_set() or self._wakes:
            self._waiting.wait()
            self._waiting.clear()  # first: a wake that is added meanwhile sets it again
            wakes = [self._wakes.popleft() for _ in range(len(self._wakes))]
            is_sent = not wakes or self._publish(wakes)
            if self._stopping.wait(GATHER_SECONDS if is_sent else self._pause_seconds) and not is_sent:
                return

    def _publish(self, wakes: Sequence[Wake]) -> bool:
        """Publish a batch; return True if all were sent. Catches everything: this thread must never end."""
        try:
            sent = self._send(wakes)
        except Exception:
            log.error("wake.publish_failed", exc_info=True, wakes=len(wakes), step=wakes[0].step)
            sent = 0
        metrics.WAKES_SENT.inc(sent)
        metrics.WAKES_DROPPED.labels("failed").inc(len(wakes) - sent)
        return sent == len(wakes)
