"""Errors of the broker, and the table of the replies by which Redis and Valkey refuse (docs/reference/errors.md)."""

import logging
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import amqp.exceptions
import kombu.exceptions
import redis.exceptions
import redis.sentinel

from moorage.certificates import find_certificate_error, iterate_causes

BROKER_ERRORS: Final = (
    kombu.exceptions.KombuError,
    redis.exceptions.RedisError,
    amqp.exceptions.AMQPError,
    amqp.exceptions.MessageNacked,  # not an AMQPError: RabbitMQ rejects one message
    OSError,
)
SETTING: Final = "CELERY_BROKER_URL"


class BrokerFinding(NamedTuple):
    """What is wrong with the broker, and what an operator does."""

    what: str
    advice: str


NO_ANSWER: Final = BrokerFinding("the broker does not answer", f"start it, or correct {SETTING}")
# By the first word of the reply. All of them are outages: work waits and goes on without a restart.
REPLIES: Final[Mapping[str, BrokerFinding]] = {
    "OOM": BrokerFinding("the memory limit is reached", "raise maxmemory, or remove what others store there"),
    "READONLY": BrokerFinding("it is a replica", f"promote it, or name the primary (or the sentinels) in {SETTING}"),
    "MASTERDOWN": BrokerFinding("it is a replica without its primary", f"promote it, or correct {SETTING}"),
    "UNBLOCKED": BrokerFinding("it becomes a replica", "wait, or promote it"),
    "MISCONF": BrokerFinding("it cannot save its data to disk", "free its disk; its log has the reason"),
    "NOREPLICAS": BrokerFinding("too few replicas are connected", "start them, or lower min-replicas-to-write"),
    "LOADING": BrokerFinding("it loads its data", "wait"),
    "BUSY": BrokerFinding("a script blocks it", "end it: SCRIPT KILL"),
    "NOPERM": BrokerFinding("its ACL forbids a command or key", f"grant the user of {SETTING} ~* &* +@all"),
    "NOAUTH": BrokerFinding("it wants a password", f"write it into {SETTING}"),
    "WRONGPASS": BrokerFinding("it refuses the password", f"correct {SETTING}"),
    "WRONGTYPE": BrokerFinding("a key of moorage's is another type", "delete it, and use a database of moorage's own"),
    "CLUSTERDOWN": BrokerFinding("it is a cluster", f"name a server without cluster mode in {SETTING}"),
    "MOVED": BrokerFinding("it is a cluster", f"name a server without cluster mode in {SETTING}"),
    "CROSSSLOT": BrokerFinding("it is a cluster", f"name a server without cluster mode in {SETTING}"),
    "TRYAGAIN": BrokerFinding("it is a cluster", f"name a server without cluster mode in {SETTING}"),
}
_WORD: Final = re.compile(r"\b[A-Z]{3,}\b")


def find_reply(error: BaseException) -> str | None:
    """Return the first word of the reply by which the broker refused; None for another error."""
    for cause in iterate_causes(error):
        words: list[str] = [str(getattr(cause, "status_code", None) or ""), *_WORD.findall(str(cause))]
        if known := [word for word in words if word in REPLIES]:
            return known[0]
    return None


def explain(error: BaseException) -> BrokerFinding:
    """Return what an error of the broker means. Contains no secrets."""
    if (certificate := find_certificate_error(error)) is not None:
        advice = f"correct {SETTING}: its host name, or ?ssl_ca_certs=FILE with the certificates of its issuer"
        reason = getattr(certificate, "verify_message", certificate)
        return BrokerFinding(f"the broker's certificate is refused: {reason}", advice)
    if (reply := find_reply(error)) is not None:
        return BrokerFinding(f"the broker refuses ({reply}): {REPLIES[reply].what}", REPLIES[reply].advice)
    if any(isinstance(cause, redis.sentinel.MasterNotFoundError) for cause in iterate_causes(error)):
        return BrokerFinding("the sentinels name no primary", f"start them, or correct master_name in {SETTING}")
    replies = [cause for cause in iterate_causes(error) if isinstance(cause, redis.exceptions.ResponseError)]
    if replies:
        return BrokerFinding(f"the broker refuses: {str(replies[0])[:200]}", "see its log")
    return NO_ANSWER


def drop_traceback(record: logging.LogRecord) -> bool:
    """Log an outage of the broker in one line: Celery and kombu add a traceback of fifty. A filter of a handler."""
    if record.exc_info and isinstance(record.exc_info[1], redis.exceptions.RedisError | kombu.exceptions.KombuError):
        record.exc_info = record.exc_text = None
    return True
