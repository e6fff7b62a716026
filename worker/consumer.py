"""Celery's consumer: it stays when the broker refuses, and drops no message silently."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from celery.exceptions import CPendingDeprecationWarning, InvalidTaskError
from celery.worker import consumer, state
from kombu import Connection, Message, Producer
from kombu.exceptions import KombuError

from moorage import logs
from worker import bootsteps, queues
from worker.broker_errors import BROKER_ERRORS, NO_ANSWER, explain
from worker.publish import abandon_on_error

log = logs.get_logger(__name__)

# Raised by kombu 5.7 on Redis in addition to connection errors when a message is acknowledged or returned over a closed
# connection (its client is None, its socket closed). Celery would treat them as bugs and end the worker; a new
# connection resolves them.
KOMBU_ERRORS: Final = (AttributeError, KeyError, ValueError)

# Waits between connections that the broker accepts and then refuses to serve; Celery waits only if none is accepted.
MAX_WAIT_SECONDS: Final = 5
MAX_RETRY_SECONDS: Final = 10  # between connections that are not accepted; Celery waits up to 30
STEADY_SECONDS: Final = 10.0  # a connection that lasted so long was served

# Headers that Celery uses unchecked. A value of another type would end the worker, or one of its pool children.
HEADER_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("lang", "task", "id"), (str,)),
    **dict.fromkeys(("root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr"), (str,)),
    **dict.fromkeys(("eta", "expires", "compression"), (str,)),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), (int,)),
    **dict.fromkeys(("stamped_headers",), (list,)),
    **dict.fromkeys(("stamps",), (dict,)),
}


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
        self._await_turn()
        connection: Connection = super().connect()
        if queues.is_rabbitmq(self.app.conf.broker_url):
            with connection.channel() as channel:
                for name in queues.QUEUES:
                    queues.dead_letter_queue(name)(channel).declare()
        return connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._connecting_at = -STEADY_SECONDS  # monotonic
        self._wait_seconds = 0
        super().__init__(*args, **kwargs)
        known: tuple[type[Exception], ...] = self.connection_errors  # type: ignore[has-type]  # untyped in celery
        self.connection_errors = (*known, *KOMBU_ERRORS)

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, however long it takes, and log what to do in one line for each attempt."""

        def log_error(error: Exception, seconds: float) -> None:
            bootsteps.touch_liveness_file()
            log.error("broker.unavailable", **explain(error)._asdict(), error=str(error)[:200], retry_s=seconds)

        conn = conn.ensure_connection(log_error, interval_max=MAX_RETRY_SECONDS, callback=state.maybe_shutdown)
        self.first_connection_attempt = False
        return conn

    def _await_turn(self) -> None:
        """Wait one second longer before each connection that follows one that was not served."""
        is_steady = time.monotonic() - self._connecting_at > STEADY_SECONDS
        self._wait_seconds = 0 if is_steady else min(self._wait_seconds + 1, MAX_WAIT_SECONDS)
        until = time.monotonic() + self._wait_seconds
        while time.monotonic() < until:
            state.maybe_shutdown()
            bootsteps.touch_liveness_file()
            time.sleep(0.1)
        self._connecting_at = time.monotonic()

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        _log_refusal(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the broken connection; kombu 5.7 may fail here while it has unacknowledged messages."""
        try:
            with warnings.catch_warnings():  # ten lines about the default of a setting that worker/celery.py sets
                warnings.simplefilter("ignore", CPendingDeprecationWarning)
                super().on_connection_error_after_connected(exc)
        except KOMBU_ERRORS as error:
            log.warning("broker.close_failed", error=str(error))
        _log_refusal(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        """Return Celery's handler of a message; one of other types than Celery's becomes a dead letter."""
        handle: Callable[[Message], Any] = super().create_task_handler(*args, **kwargs)

        def handle_message(message: Message) -> Any:
            try:
                _check_call(message)
            except InvalidTaskError as error:
                return self.on_invalid_task(None, message, error)
            return handle(message)

        return handle_message

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
                    retry_policy=self.app.conf.task_publish_retry_policy,
                )
        except BROKER_ERRORS as error:
            log.error("dead_letter_queue.publish_failed", reason=reason[:500], error=explain(error).what)


def _log_refusal(error: Exception) -> None:
    finding = explain(error)
    if finding != NO_ANSWER:  # Celery's own line shows the class of an error, not the reply
        log.error("broker.refuses", **finding._asdict())


def _check_call(message: Message) -> None:
    """Raise InvalidTaskError if a message that names a task is not a call as Celery sends it."""
    headers = message.headers
    if "task" not in headers:
        return  # Celery finds it to be unknown
    for name, types in HEADER_TYPES.items():
        value = headers.get(name)
        if not isinstance(value, types) and (value is not None or name in ("task", "id")):
            raise InvalidTaskError(f"header {name} is {type(value).__name__}")
    limits = headers.get("timelimit") or (None, None)
    if not isinstance(limits, list | tuple) or [type(x) for x in limits if not isinstance(x, int | float | None)]:
        raise InvalidTaskError("header timelimit is not a pair of numbers")
    try:
        args, kwargs, embed = message.payload
    except KombuError:
        return  # Celery finds it not to be decodable
    except (TypeError, ValueError) as error:
        raise InvalidTaskError("its body has not three parts") from error
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict | None)):
        raise InvalidTaskError("its body is not arguments and options")
