"""Drains the dead-letter queues: what names a live row is woken again, what names none becomes a dead letter."""

import json
import queue as queue_module
import time
import uuid
from collections import Counter
from typing import Any, Final

from kombu import Connection as BrokerConnection
from kombu import Message

from db import dead_letters, leases
from moorage import logs
from moorage.failpoints import failpoint
from moorage.lifecycle import DeadLetterDecision
from moorage.model import Step, Wake
from moorage.text import to_storable
from tasks.step import Deps
from worker import publish, queues, step_runner
from worker.celery import app

log = logs.get_logger(__name__)

MAX_MESSAGES: Final = (
    500  # messages a run; ticks that RabbitMQ expired come in thousands after an outage and cost nothing
)
MAX_SECONDS_PER_QUEUE: Final = 20.0
_MESSAGES: Final = uuid.UUID("6f1d2a3e-57c1-4b8e-9a51-5b3f8f2f7d10")  # namespace of ids made from message bodies
_STEP_OF_TASK: Final = {task: step for step, task in queues.TASK_BY_STEP.items()}


def drain_queues(deps: Deps, actor: str) -> dict[str, Any]:
    """Empty the dead-letter queues; a message is acknowledged after its dead letter is committed."""
    woken = buried = 0
    try:
        with app.connection_for_write() as connection:
            for name in queues.QUEUES:
                w, b = _drain(deps, connection, name, actor)
                woken, buried = woken + w, buried + b
    except publish.BROKER_ERRORS as error:
        return {"broker": "away", "error": type(error).__name__}
    return {"woken": woken, "dead_letters": buried}


def _drain(deps: Deps, connection: BrokerConnection, queue: str, actor: str) -> tuple[int, int]:
    done: Counter[str] = Counter()
    until = time.monotonic() + MAX_SECONDS_PER_QUEUE
    simple: Any = connection.SimpleQueue(queues.dead_letter_queue(queue), no_ack=False)  # type: ignore[arg-type]  # takes a Queue
    try:
        while done["woken"] + done["ended"] + done["buried"] < MAX_MESSAGES and time.monotonic() < until:
            message = simple.get_nowait()
            done[_sort_out(deps, message, queue, actor)] += 1
            failpoint("drain.before_ack")
            message.ack()
    except queue_module.Empty:
        pass
    finally:
        simple.close()
    return done["woken"], done["buried"]


def _sort_out(deps: Deps, message: Message, queue: str, actor: str) -> str:
    """Wake the row that a message names or make it a dead letter, and return what was done."""
    if _is_sweep(message):
        return "sweep"
    woken = _wake(deps, message)
    if woken is not None:
        return "woken" if woken else "ended"
    _bury(deps, message, queues.dead_letter_queue_name(queue), actor)
    return "buried"


def _wake(deps: Deps, message: Message) -> int | None:
    """Wake the row that a message names, if it is still live; returns how many were woken, None when it names none."""
    step, row_id = _named(message)
    if step is None or row_id is None:
        return None
    spec = step_runner.STEPS[step]
    state = deps.database.run(lambda conn: leases.get_state(conn, spec.table, row_id))
    if state is None:
        return None
    return publish.publish_wakes([Wake(step, row_id)] if state in spec.states else [])


def _named(message: Message) -> tuple[Step | None, uuid.UUID | None]:
    step = _STEP_OF_TASK.get(str(message.headers.get("task", "")))
    try:
        args = json.loads(_body(message))[0]
        return step, uuid.UUID(args[0])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return step, None


def _is_sweep(message: Message) -> bool:
    """A dropped tick of a sweep is no loss: beat sends the next."""
    return str(message.headers.get("task", "")) == queues.SWEEP_TASK


def _bury(deps: Deps, message: Message, name: str, actor: str) -> None:
    why = str(message.headers.get("why") or _why_by_broker(message))
    dead_letter_message(deps, str(message.headers.get("task", "")), _body(message), why=why, queue=name, actor=actor)


def dead_letter_message(deps: Deps, task: str, body: bytes, *, why: str, queue: str, actor: str) -> None:
    """Make a message that names no row a dead letter; the same message twice is one."""
    letter = DeadLetterDecision("VALIDATION_FAILED", "DroppedMessage", f"a broker message {why}", retryable=False)
    facts = {
        "queue": queue,
        "task": task,
        "bytes": len(body),
        "body": to_storable(body.decode("utf-8", "replace"), 1000),
    }
    subject_id = uuid.uuid5(_MESSAGES, body.hex())
    deps.database.run(
        lambda conn: dead_letters.add(conn, "message", subject_id, letter, step="drain", facts=facts, actor=actor)
    )


def _why_by_broker(message: Message) -> str:
    """Return what RabbitMQ says about a message that it put here itself."""
    deaths = message.headers.get("x-death")
    reason = deaths[0].get("reason") if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else None
    told = {"rejected": "was rejected: no worker knows it", "delivery_limit": "was delivered too often"}
    return told.get(str(reason), "was rejected or delivered too often")


def _body(message: Message) -> bytes:
    return message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")
