"""Queues and task names. Other processes depend on them: task names and the format of a wake never change."""

from collections.abc import Mapping
from typing import Final

from kombu import Exchange
from kombu import Queue as KombuQueue

from moorage.model import Queue, Step

TASK_BY_STEP: Final[Mapping[Step, str]] = {
    "ingest": "moorage.ingest",
    "submit": "moorage.submit",
    "generate": "moorage.generate",
    "poll": "moorage.poll",
    "keep": "moorage.keep",
    "discard": "moorage.discard",
    "notify": "moorage.notify",
}
QUEUE_BY_STEP: Final[Mapping[Step, Queue]] = {
    "ingest": "quick",
    "submit": "quick",
    "generate": "keep",  # takes a minute: sweeps must not wait behind it
    "poll": "quick",
    "keep": "keep",
    "discard": "keep",
    "notify": "quick",
}
SWEEP_TASK: Final = "moorage.sweep"
QUEUES: Final[tuple[Queue, ...]] = ("quick", "keep")
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
    if not is_rabbitmq(broker_url):
        return [KombuQueue(name, Exchange(name, type="direct"), routing_key=name) for name in QUEUES]
    return [
        KombuQueue(
            name,
            Exchange(name, type="direct"),
            routing_key=name,
            queue_arguments={
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead_letter_queue_name(name),
                "x-delivery-limit": DELIVERY_LIMIT,
            },
        )
        for name in QUEUES
    ]
