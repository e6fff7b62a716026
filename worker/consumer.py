"""Celery's consumer: on Redis, messages that Celery would drop silently go to the dead-letter queue."""

from typing import Any, ClassVar, Final

from celery.worker import consumer
from kombu import Connection, Message, Producer

from moorage import logs
from worker import queues
from worker.publish import BROKER_ERRORS, abandon_on_error

log = logs.get_logger(__name__)

# Raised by kombu 5.7 on Redis in addition to connection errors: when a message is acknowledged or returned over a
# closed connection (AttributeError: its client is None), and for a list entry that is not a message.
# Celery would treat them as bugs and end the worker; a new connection resolves both.
KOMBU_ERRORS: Final = (AttributeError, KeyError, ValueError)


class Consumer(consumer.Consumer):
    """
    Publish the messages that Celery drops, in four cases, to the dead-letter queue.

    On RabbitMQ the broker's dead-letter exchange does this for rejected messages; only a message that cannot be decoded
    is acknowledged there, and is published here as on Redis.
    """

    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc, valid-type]  # a variable in celery's stubs
        """Celery's steps without delayed delivery, which adds 28 queues on RabbitMQ; moorage delays by `run_at`."""

        default_steps: ClassVar = [
            step for step in consumer.Consumer.Blueprint.default_steps if not str(step).endswith(":DelayedDelivery")
        ]

    def connect(self) -> Connection:
        """Connect and declare the dead-letter queues on RabbitMQ, which discards messages without a queue."""
        connection: Connection = super().connect()
        if queues.is_rabbitmq(self.app.conf.broker_url):
            with connection.channel() as channel:
                for name in queues.QUEUES:
                    queues.dead_letter_queue(name)(channel).declare()
        return connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known: tuple[type[Exception], ...] = self.connection_errors  # type: ignore[has-type]  # untyped in celery
        self.connection_errors = (*known, *KOMBU_ERRORS)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the broken connection; kombu 5.7 may fail here while it has unacknowledged messages."""
        try:
            super().on_connection_error_after_connected(exc)
        except KOMBU_ERRORS as error:
            log.warning("broker.close_failed", error=str(error))

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._dead_letter(message, f"cannot be decoded: {exc}")
        super().on_decode_error(message, exc)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        self._dead_letter_unless_rejected(message, "is not a task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        self._dead_letter_unless_rejected(message, f"names an unknown task: {exc}")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        self._dead_letter_unless_rejected(message, f"is invalid: {exc}")
        super().on_invalid_task(body, message, exc)

    def _dead_letter_unless_rejected(self, message: Message, reason: str) -> None:
        if not queues.is_rabbitmq(self.app.conf.broker_url):
            self._dead_letter(message, reason)

    def _dead_letter(self, message: Message, reason: str) -> None:
        queue = str(message.delivery_info.get("routing_key") or "quick")
        dead_letters = queues.dead_letter_queue(queue if queue in queues.QUEUES else "quick")
        log.error("message.dead_lettered", queue=queue, reason=reason[:500])
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")
        try:
            with self.app.connection_for_write() as connection, abandon_on_error(connection):
                Producer(connection).publish(
                    body,
                    routing_key=dead_letters.routing_key,
                    declare=[dead_letters],
                    confirm_timeout=queues.CONFIRM_SECONDS,
                    content_type="application/octet-stream",
                    content_encoding="binary",
                    headers={"why": reason[:500], "task": str(message.headers.get("task", "")), "queue": queue},
                    retry=True,
                    retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.05},
                )
        except BROKER_ERRORS as error:
            log.error("dead_letter_queue.publish_failed", reason=reason[:500], error=type(error).__name__)
