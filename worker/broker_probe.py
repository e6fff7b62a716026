"""Whether the broker takes messages: what a worker does, tried with keys that expire."""

from typing import Any, Final
from uuid import uuid4

from worker import redis_transport
from worker.broker_errors import BROKER_ERRORS, explain

PROBE_SECONDS: Final = 60  # then the broker deletes what an interrupted probe left
CONNECT_SECONDS: Final = 3


def find_refusal(url: str) -> str | None:
    """Return why the broker takes no messages, although it may answer; None if it does. Of RabbitMQ the connection."""
    if url.startswith("memory://"):
        return None
    try:
        if url.startswith(("amqp://", "amqps://")):
            with redis_transport.open_connection(url, seconds=CONNECT_SECONDS):
                return None
        with redis_transport.open_client(url, seconds=CONNECT_SECONDS) as client:
            write_probe(client)
    except BROKER_ERRORS as error:
        return explain(error).what
    return None


def write_probe(client: Any) -> None:
    """Send and receive a message, and use the other commands of a worker that a server may refuse."""
    key = f"moorage.doctor.{uuid4()}"
    commands: list[tuple[str, str, tuple[Any, ...]]] = [
        ("LPUSH", key, ("probe",)),
        ("HSET", f"{key}.hash", ("a", "b")),
        ("SADD", f"{key}.set", ("a",)),
        ("ZADD", f"{key}.index", (1, "a")),
    ]
    for command, name, values in commands:
        client.execute_command(command, name, *values)
        client.expire(name, PROBE_SECONDS)
    client.execute_command("BRPOP", key, 1)
    client.publish(key, "probe")
    with client.pipeline(transaction=True) as acknowledgement:
        acknowledgement.zrem(f"{key}.index", "a").hdel(f"{key}.hash", "a")
        acknowledgement.delete(*(name for _, name, _ in commands)).execute()
