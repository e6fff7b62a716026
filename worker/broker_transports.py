"""
kombu's transports for Redis and Sentinel, with two changes, and for RabbitMQ, with limits of time and behind TLS.

A reply that refuses (OOM, READONLY, ...) is an outage like a lost connection: kombu 5.7 counts only lost connections,
and Celery ends the worker at any other error. A list entry that is no message is delivered as a message of unknown
content, which becomes a dead letter; a broadcast that is none is dropped.
"""

import base64
import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

import kombu
import kombu.transport
import redis
from kombu.exceptions import KombuError
from kombu.transport import pyamqp, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from moorage import logs
from moorage.broker_urls import BrokerSpec, parse_broker_url

log = logs.get_logger(__name__)

# What decoding raises for a text that is no message.
NOT_A_MESSAGE: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_SOCKET: Final[Mapping[str, Any]] = {"socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True}
_OPTIONS: Final[Mapping[str, Any]] = {
    "visibility_timeout": 1800,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "health_check_interval": 10,
}
_MAX_ENTRY_BYTES: Final = 4096  # of an entry that is no message: a dead letter shows the beginning


def register_transports() -> None:
    """Have kombu use these transports for their URLs, also for the second one of a list. Call it before connecting."""
    here = f"{__name__}:"
    aliases = {"redis": "RedisTransport", "rediss": "RedisTransport", "sentinel": "SentinelTransport"}
    aliases |= {"amqp": "AmqpTransport", "amqps": "AmqpsTransport"}
    kombu.transport.TRANSPORT_ALIASES.update({scheme: here + name for scheme, name in aliases.items()})


def build_options(spec: BrokerSpec) -> dict[str, Any]:
    """Return kombu's transport options; none for RabbitMQ."""
    if spec.scheme not in ("redis", "rediss", "sentinel"):
        return {}
    if spec.scheme != "sentinel":
        return {**_OPTIONS, **_SOCKET}
    account = {name: spec.parameters.get(f"sentinel_{name}") for name in ("username", "password")}
    sentinel = {**_SOCKET, **{name: value for name, value in account.items() if value}}
    return {**_OPTIONS, **_SOCKET, "master_name": spec.parameters["master_name"], "sentinel_kwargs": sentinel}


@contextlib.contextmanager
def open_connection(url: str, *, seconds: int) -> Iterator[kombu.Connection]:
    """Connect to a broker of any kind. Raises BROKER_ERRORS."""
    register_transports()
    spec = parse_broker_url(url)
    if options := build_options(spec):
        options |= {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    tls = dict(spec.ssl or {}) or False
    with kombu.Connection(spec.url, ssl=tls, transport_options=options, connect_timeout=seconds) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=seconds)
        yield connection


@contextlib.contextmanager
def open_client(url: str, *, seconds: int) -> Iterator[redis.Redis]:
    """Connect to Redis or Valkey; to the primary if the URL names sentinels. Raises BROKER_ERRORS."""
    with open_connection(url, seconds=seconds) as connection:
        channel: Any = connection.default_channel
        yield channel.client


def is_message(entry: bytes) -> bool:
    """Return True if kombu can build a message from a list entry."""
    try:
        return _has_message_types(loads(bytes_to_str(entry)))
    except NOT_A_MESSAGE:
        return False


def _has_message_types(payload: Any) -> bool:
    properties = payload["properties"]
    info, body, encoding = properties["delivery_info"], payload.get("body"), properties.get("body_encoding")
    texts = (properties["delivery_tag"], info["exchange"], info["routing_key"])
    texts_or_none = (body, payload.get("content-type"), payload.get("content-encoding"))
    if body:
        kombu_redis.Channel.codecs[encoding].decode(body) if encoding else None
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(text, str | None) for text in texts_or_none)
        and isinstance(payload.get("headers"), dict | None)
    )


def wrap_entry(entry: bytes, queue: str) -> bytes:
    """Return a message whose body is an entry that is none. Its type is not JSON: it is no call of a task."""
    info = {"exchange": queue, "routing_key": queue}
    message = {
        "body": base64.b64encode(entry[:_MAX_ENTRY_BYTES]).decode(),
        "content-type": "application/data",
        "content-encoding": "binary",
        "headers": {},
        "properties": {"delivery_tag": str(uuid.uuid4()), "delivery_info": info, "body_encoding": "base64"},
    }
    return json.dumps(message).encode()


class BrokerClient(redis.Redis):
    """Returns only messages from queues."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Return a reply; an entry of a queue that is no message, wrapped in one."""
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name == "BRPOP" and reply:
            key, entry = reply
            queue = bytes_to_str(key).rsplit(kombu_redis.Channel.sep, 1)[0]
            return [key, entry if is_message(entry) else wrap_entry(entry, queue)]
        if command_name == "RPOP" and reply and not is_message(reply):
            return wrap_entry(reply, "")
        return reply


class _QoS(kombu_redis.QoS):
    def ack(self, delivery_tag: Any) -> None:
        with self._stop_counting_if_refused(delivery_tag):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        with self._stop_counting_if_refused(delivery_tag):
            super().reject(delivery_tag, requeue)

    @contextlib.contextmanager
    def _stop_counting_if_refused(self, delivery_tag: Any) -> Iterator[None]:
        """
        Let the consumer take another message in place of one whose end the broker refused.

        Celery only logs the refusal. Where the consumer's own connection survives it, such messages would fill the
        prefetch limit for ever. The broker keeps them and delivers them again after the visibility timeout.
        """
        try:
            yield
        except (redis.RedisError, OSError):
            virtual.QoS.ack(self, delivery_tag)
            raise

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Return an unacknowledged message to its queue; delete what is no message, or no other is ever returned."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (redis.RedisError, OSError):
            raise
        except NOT_A_MESSAGE as error:
            log.warning("broker.not_a_message", key="unacked", error=repr(error)[:200])
            self.reject(tag)


class _ChannelChanges:
    """The changes to kombu's channels, for Redis and Sentinel."""

    QoS: Any = _QoS

    def _get_client(self) -> type[redis.Redis]:
        return BrokerClient

    def _receive_one(self, pubsub: Any) -> Any:
        """Deliver a control command or an event; drop one that is none, as others may publish there, too."""
        try:
            return super()._receive_one(pubsub)  # type: ignore[misc]  # of kombu's channel
        except (redis.RedisError, OSError):
            raise
        except (*NOT_A_MESSAGE, KombuError) as error:
            log.warning("broker.not_a_message", key="a broadcast", error=repr(error)[:200])
            return False


class RedisChannel(_ChannelChanges, kombu_redis.Channel):
    """A channel of one server."""


class SentinelChannel(_ChannelChanges, kombu_redis.SentinelChannel):
    """A channel of the primary that Sentinel names."""


class RedisTransport(kombu_redis.Transport):
    """Redis and Valkey."""

    Channel = RedisChannel
    connection_errors = (*kombu_redis.Transport.connection_errors, redis.RedisError)


class SentinelTransport(kombu_redis.SentinelTransport):
    """Redis and Valkey behind Sentinel."""

    Channel = SentinelChannel
    connection_errors = (*kombu_redis.SentinelTransport.connection_errors, redis.RedisError)


class AmqpTransport(pyamqp.Transport):
    """RabbitMQ."""

    def establish_connection(self) -> Any:
        """Connect, and limit each wait for an answer to as long: it has no end in py-amqp, except behind TLS."""
        connection = super().establish_connection()
        connection.transport.sock.settimeout(connection.connect_timeout)
        return connection


class AmqpsTransport(pyamqp.SSLTransport):
    """RabbitMQ behind TLS."""

    def establish_connection(self) -> Any:
        """Connect, and compare the certificate with the name of the server that this connection is to, of a list."""
        client: Any = self.client
        client.ssl = {**(client.ssl or {}), "server_hostname": client.hostname}
        return super().establish_connection()
