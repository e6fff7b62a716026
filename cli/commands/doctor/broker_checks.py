"""Checks of the broker: connection, certificate, refusals, eviction policy and persistence of Redis or Valkey."""

from collections.abc import Iterator
from typing import Any, Final

import redis

from cli.commands.doctor.checks import CheckResult, fail, ok, warn
from moorage.settings import Settings
from worker import inspect_cluster, redis_transport
from worker.broker_errors import BROKER_ERRORS, explain

BROKER_SECONDS: Final = 3


def check_broker(settings: Settings) -> Iterator[CheckResult]:
    """Check Redis or Valkey, and write to it as a worker does. Of RabbitMQ only the connection."""
    url = settings.broker_url.get_secret_value()
    if url.startswith("memory://"):
        return
    try:
        if url.startswith(("amqp://", "amqps://")):
            with redis_transport.open_connection(url, seconds=BROKER_SECONDS):
                yield ok("the broker answers")
            return
        with redis_transport.open_client(url, seconds=BROKER_SECONDS) as client:
            yield from _check_server(client)
            inspect_cluster.write_probe(client)
            yield ok("the broker accepts messages")
    except BROKER_ERRORS as error:
        finding = explain(error)
        yield fail(finding.what, finding.advice)


def _check_server(client: redis.Redis) -> Iterator[CheckResult]:
    info: Any = client.info("server")
    yield ok(f"broker {info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}")
    memory: Any = client.info("memory")
    persistence: Any = client.info("persistence")
    if (policy := memory.get("maxmemory_policy", "noeviction")) == "noeviction":
        yield ok("the broker evicts no messages (noeviction)")
    else:
        yield fail(f"the broker may evict messages ({policy})", "set maxmemory-policy noeviction")
    if persistence.get("aof_enabled"):
        yield ok("the broker's messages survive a restart (appendonly)")
    else:
        yield warn("the broker loses its messages in a restart", "set appendonly yes, or accept a delay of seconds")
