"""Queues and task names. Other processes depend on them: task names and the format of a wake never change."""

from collections.abc import Mapping
from typing import Final, get_args

from kombu import Exchange
from kombu import Queue as KombuQueue

from moorage.model import Queue, Step

TASK_BY_STEP: Final[Mapping[Step, str]] = {step: f"moorage.{step}" for step in get_args(Step)}
_KEEP_STEPS: Final = ("generate", "keep", "discard")  # generate takes a minute: webhooks must not wait behind it
QUEUE_BY_STEP: Final[Mapping[Step, Queue]] = {step: "keep" if step in _KEEP_STEPS else "quick" for step in TASK_BY_STEP}
INGEST_ROWS: Final = 64  # deliveries that a task of step ingest claims at once
SWEEP_TASK: Final = "moorage.sweep"
SWEEP_SECONDS: Final = 600  # Celery kills the process: a sweep holds no lease
# In the queue `sweeps`, with a worker of its own: they use only PostgreSQL and the broker, and take a second at most.
# The others use storage or take minutes, and run as steps do. One of those counts the consumers, also of `sweeps`.
PROMPT_SWEEPS: Final = ("dispatch", "reconcile")
QUEUES: Final[tuple[Queue, ...]] = ("quick", "keep", "sweeps")
DELIVERY_LIMIT: Final = 5  # after more deliveries to dying consumers, RabbitMQ dead-letters the message
# RabbitMQ confirms each message; it blocks publishers while it is out of memory or disk.
CONFIRM_SECONDS: Final = 2.0


def dead_letter_queue_name(queue: str) -> str:
    return f"{queue}.dead"


def dead_letter_queue(queue: str) -> KombuQueue:
    """Return the dead-letter queue: a classic queue, as a quorum queue drops what a failing drain returns too often."""
    name = dead_letter_queue_name(queue)
    return KombuQueue(name, routing_key=name, durable=True)


def is_rabbitmq(broker_url: str) -> bool:
    """Return True for AMQP, which has its own dead-letter exchanges and delivery limits."""
    return broker_url.startswith(("amqp://", "amqps://"))


def build_queues(broker_url: str) -> list[KombuQueue]:
    """
    Return the queues that workers consume.

    On RabbitMQ they are quorum queues that dead-letter rejected and too often delivered messages. Redis cannot do this:
    worker/consumer.py publishes what Celery would drop.
    """
    built = [KombuQueue(name, Exchange(name, type="direct"), routing_key=name) for name in QUEUES]
    quorum = {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-delivery-limit": DELIVERY_LIMIT}
    for queue in built if is_rabbitmq(broker_url) else ():
        queue.queue_arguments = {**quorum, "x-dead-letter-routing-key": dead_letter_queue_name(queue.name)}
    return built
