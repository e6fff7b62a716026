"""Drain the dead-letter queues: wake the live row that a message names, or record the message as a dead letter."""

import json
import queue as queue_module
import time
import uuid
from collections import Counter
from typing import Any, Final, Literal

from kombu import Connection as BrokerConnection
from kombu import Message

from db import dead_letters, leases
from moorage import logs
from moorage.failpoints import failpoint
from moorage.model import Wake
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable
from tasks.step import Deps
from worker import broker_errors, publish, queues

log = logs.get_logger(__name__)

MAX_MESSAGES: Final = 500  # per queue and run, without ticks: RabbitMQ expires thousands of them during an outage
MAX_SECONDS_PER_QUEUE: Final = 20.0
_ID_NAMESPACE: Final = uuid.UUID("6f1d2a3e-57c1-4b8e-9a51-5b3f8f2f7d10")  # of ids derived from message bodies
_STEP_BY_TASK: Final = {task: step for step, task in queues.TASK_BY_STEP.items()}


def drain_queues(deps: Deps, actor: str) -> dict[str, Any]:
    """Empty the dead-letter queues; a message is acknowledged after its dead letter is committed."""
    from worker.celery import app  # the app reads the settings: only when it is needed

    counts: Counter[str] = Counter()
    try:
        with app.connection_for_write() as connection:
            for name in queues.QUEUES:
                counts += _drain(deps, connection, name, actor)
    except broker_errors.BROKER_ERRORS as error:
        return {"broker": "unavailable", "error": broker_errors.explain(error).what}
    return {"woken": counts["woken"], "dead_letters": counts["dead_letter"]}


def _drain(deps: Deps, connection: BrokerConnection, queue: str, actor: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    until = time.monotonic() + MAX_SECONDS_PER_QUEUE
    simple: Any = connection.SimpleQueue(queues.dead_letter_queue(queue), no_ack=False)  # type: ignore[arg-type]  # takes a Queue
    try:
        while counts.total() - counts["sweep"] < MAX_MESSAGES and time.monotonic() < until:
            message = simple.get_nowait()
            counts[_process(deps, message, queue, actor)] += 1
            failpoint("drain.before_ack")
            message.ack()
    except queue_module.Empty:
        pass
    finally:
        simple.close()
    return counts


def _process(deps: Deps, message: Message, queue: str, actor: str) -> Literal["sweep", "woken", "ended", "dead_letter"]:
    task = str(message.headers.get("task", ""))
    if task == queues.SWEEP_TASK:  # an expired tick is no loss: beat sends the next one
        return "sweep"
    woken = _wake_row(deps, task, message)
    if woken is not None:
        return "woken" if woken else "ended"
    reason = str(message.headers.get("why") or _describe_broker_reason(message))
    queue = queues.dead_letter_queue_name(queue)
    dead_letter_message(deps, task, _body(message), why=reason, queue=queue, actor=actor)
    return "dead_letter"


def _wake_row(deps: Deps, task: str, message: Message) -> int | None:
    """Wake the row that a message names if it is live; returns the number of wakes, None without such a row."""
    step = _STEP_BY_TASK.get(task)
    try:
        row_id = uuid.UUID(json.loads(_body(message))[0][0])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    if step is None:
        return None
    table, states, _ = leases.WORK[step]
    state = deps.database.run(lambda conn: leases.get_state(conn, table, row_id))
    if state is None:
        return None
    return publish.publish_wakes([Wake(step, row_id)] if state in states else [])


def dead_letter_message(deps: Deps, task: str, body: bytes, *, why: str, queue: str, actor: str) -> None:
    """Record a message that names no row as a dead letter, once for equal messages."""
    decision = DeadLetterDecision("VALIDATION_FAILED", "DroppedMessage", f"a broker message {why}", retryable=False)
    text = to_storable(body.decode("utf-8", "replace"), 1000)
    facts = {"queue": queue, "task": task, "bytes": len(body), "body": text}
    subject_id = uuid.uuid5(_ID_NAMESPACE, body.hex())
    deps.database.run(
        lambda conn: dead_letters.add(conn, "message", subject_id, decision, step="drain", facts=facts, actor=actor)
    )


def _describe_broker_reason(message: Message) -> str:
    deaths = message.headers.get("x-death")
    reason = deaths[0].get("reason") if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else None
    texts = {"rejected": "was rejected: no worker knows its task", "delivery_limit": "was delivered too often"}
    return texts.get(str(reason), "was rejected or delivered too often")


def _body(message: Message) -> bytes:
    return message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")
