"""Names that other processes rely on: queues, task names, sweeps. A task name and the form of a wake never change."""

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
    "generate": "keep",  # a minute each: sweeps must not wait behind them
    "poll": "quick",
    "keep": "keep",
    "discard": "keep",
    "notify": "quick",
}
SWEEP_TASK: Final = "moorage.sweep"
QUEUES: Final[tuple[Queue, ...]] = ("quick", "keep")
DELIVERY_LIMIT: Final = 5  # a message whose consumer dies once more than this goes to the dead-letter queue
# RabbitMQ confirms each message; one that runs out of memory or disk blocks its publishers until it has some again.
CONFIRM_SECONDS: Final = 2.0


def dead_letter_queue_name(queue: str) -> str:
    """Return the name of a queue's dead-letter queue."""
    return f"{queue}.dead"


def dead_letter_queue(queue: str) -> KombuQueue:
    """
    Return a queue's dead-letter queue, reached through the default exchange.

    On RabbitMQ it is a classic queue: a quorum queue would drop a message that a failing drain gave back too often.
    """
    name = dead_letter_queue_name(queue)
    return KombuQueue(name, routing_key=name, durable=True)


def is_rabbitmq(broker_url: str) -> bool:
    """Return whether the broker speaks AMQP: it then has dead-letter exchanges and delivery limits of its own."""
    return broker_url.startswith(("amqp://", "amqps://"))


def build_queues(broker_url: str) -> list[KombuQueue]:
    """
    Return the queues that workers consume.

    On RabbitMQ they are quorum queues whose rejected and too often delivered messages go to their dead-letter queue;
    Redis has no such thing: there worker/consumer.py publishes what Celery would drop.
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
