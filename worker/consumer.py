"""What Celery would silently drop on Redis goes to the queue's dead-letter queue instead."""

from typing import Any, ClassVar, Final

from celery.worker import consumer
from kombu import Connection, Message, Producer

from moorage import logs
from worker import queues
from worker.publish import BROKER_ERRORS, abandon_on_error

log = logs.get_logger(__name__)

# What kombu 5.7 raises on Redis beside connection errors: when messages are acknowledged or handed back over a channel
# whose connection is gone (AttributeError: its client is None), and for an entry of a list that is no message at all.
# Celery takes them for bugs and ends the worker; a new connection mends both.
KOMBU_ERRORS: Final = (AttributeError, KeyError, ValueError)


class Consumer(consumer.Consumer):
    """
    Celery's consumer, with its four ways of dropping a message made visible.

    On RabbitMQ the broker's dead-letter exchange does this for messages that are rejected; only a message that cannot
    be decoded is acknowledged there, and published here as on Redis.
    """

    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc, valid-type]  # celery's stubs call it a variable
        """Celery's steps but for delayed delivery: 28 more queues on RabbitMQ for what is `run_at` in a row here."""

        default_steps: ClassVar = [
            step for step in consumer.Consumer.Blueprint.default_steps if not str(step).endswith(":DelayedDelivery")
        ]

    def connect(self) -> Connection:
        """Connect, and have RabbitMQ know the dead-letter queues first: what is sent to none is gone."""
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
        """Drop the broken connection, over which kombu 5.7 may stumble when it has unacknowledged messages."""
        try:
            super().on_connection_error_after_connected(exc)
        except KOMBU_ERRORS as error:
            log.warning("broker.close_failed", error=str(error))

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep what cannot be decoded."""
        self._keep(message, f"cannot be decoded: {exc}")
        super().on_decode_error(message, exc)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Keep what is no task at all."""
        self._keep_unless_rejected(message, "is not a task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Keep a task that this worker does not know."""
        self._keep_unless_rejected(message, f"names an unknown task: {exc}")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Keep a task whose message does not fit."""
        self._keep_unless_rejected(message, f"is invalid: {exc}")
        super().on_invalid_task(body, message, exc)

    def _keep_unless_rejected(self, message: Message, why: str) -> None:
        if not queues.is_rabbitmq(self.app.conf.broker_url):
            self._keep(message, why)

    def _keep(self, message: Message, why: str) -> None:
        queue = str(message.delivery_info.get("routing_key") or "quick")
        dead = queues.dead_letter_queue(queue if queue in queues.QUEUES else "quick")
        log.error("message.dropped", queue=queue, why=why[:500])
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")
        try:
            with self.app.connection_for_write() as connection, abandon_on_error(connection):
                Producer(connection).publish(
                    body,
                    routing_key=dead.routing_key,
                    declare=[dead],
                    confirm_timeout=queues.CONFIRM_SECONDS,
                    content_type="application/octet-stream",
                    content_encoding="binary",
                    headers={"why": why[:500], "task": str(message.headers.get("task", "")), "queue": queue},
                    retry=True,
                    retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.05},
                )
        except BROKER_ERRORS as error:
            log.error("message.lost", why=why[:500], error=type(error).__name__)
