"""The dispatch and discard sweeps: publish wakes for rows that are due."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from db import leases, output_claims, submission_turns
from moorage.failpoints import failpoint
from moorage.model import Queue, Step, Wake
from tasks.jobs import turns
from tasks.outputs import discard
from tasks.step import Deps, SendWakes

STEPS_BY_QUEUE: Final[Mapping[Queue, tuple[Step, ...]]] = {
    "quick": ("submit", "poll", "notify", "ingest"),
    "keep": ("generate", "keep"),
}
STEPS: Final = tuple(step for steps in STEPS_BY_QUEUE.values() for step in steps)
QUEUE_SHARE: Final = 0.25  # of the free depth, for each step but the last, which may arrive in bursts
MIN_DISCARDS_PER_RUN: Final = 4  # so that discards proceed while the queue stays full
ROUND_SECONDS: Final = 0.05  # between two looks at a queue that drains
REFILL_SHARE: Final = 0.5  # of the depth that has drained before it is filled again: 32 wakes, for 640 tasks a second

GetQueueDepth = Callable[[Queue], int | None]


def dispatch_due(
    deps: Deps, get_depth: GetQueueDepth, send: SendWakes, due: Collection[str] = STEPS, *, seconds: float = 0.0
) -> dict[str, Any]:
    """
    Fill each queue up to MOORAGE_DEV_QUEUE_DEPTH with wakes for the most urgent rows of the steps that are due; returns
    counts by step. Refill for `seconds` the queues of steps that have more due rows than there was room.

    An empty queue has lost or served its wakes, so that rows woken less than 30 s ago are then woken again.
    """
    end, total, min_free = time.monotonic() + seconds, dict[str, Any](), 1
    while True:
        sent, due = _dispatch_once(deps, get_depth, send, due, min_free)
        for step, count in sent.items():
            total[step] = count if step == "broker" else total.get(step, 0) + count
        if not due or time.monotonic() + ROUND_SECONDS > end:
            return total
        time.sleep(ROUND_SECONDS)
        min_free = math.ceil(deps.settings.constants.queue_depth * REFILL_SHARE)


def _dispatch_once(
    deps: Deps, get_depth: GetQueueDepth, send: SendWakes, due: Collection[str], min_free: int
) -> tuple[dict[str, Any], list[Step]]:
    """Return counts by step, and the steps that may have further rows: those that used, or did not have, their room."""
    sent, more = dict[str, Any](), list[Step]()
    for queue, steps in STEPS_BY_QUEUE.items():
        if not set(steps) & set(due):
            continue
        depth = get_depth(queue)
        if depth is None:
            return {"broker": "unavailable"}, []
        free, is_empty = deps.settings.constants.queue_depth - depth, depth == 0
        has_room = free >= min_free
        for step in (step for step in steps if step in due):
            limit = free if step == steps[-1] else math.ceil(free * QUEUE_SHARE)
            queued = deps.settings.constants.queue_depth - free
            wakes = _claim_wakes(deps, step, limit, queued, is_empty) if has_room and limit > 0 else []
            failpoint("dispatch.after_commit")
            sent[step] = send(wakes) if wakes else 0
            free -= len(wakes)
            if len(wakes) >= limit or not has_room:
                more.append(step)
    return sent, more


def dispatch_discards(deps: Deps, get_depth: GetQueueDepth, send: SendWakes) -> dict[str, Any]:
    """Wake outputs whose objects are to be deleted, and delete the spooled inputs of settled jobs."""
    depth = get_depth("keep")
    if depth is None:
        return {"broker": "unavailable", "spooled": discard.delete_spooled_inputs(deps)}
    limit = max(deps.settings.constants.queue_depth - depth, MIN_DISCARDS_PER_RUN)
    wakes = _claim_wakes(deps, "discard", limit, depth, depth == 0)
    sent = send(wakes) if wakes else 0
    return {"discarding": sent, "spooled": discard.delete_spooled_inputs(deps)}


def _claim_wakes(deps: Deps, step: Step, limit: int, queued: int, queue_is_empty: bool) -> list[Wake]:
    if step == "keep":
        row_ids = deps.database.run(lambda conn: output_claims.wake_outputs(conn, limit=limit, queued=queued))
        return [Wake(step, row_id) for row_id in row_ids]
    synchronous = [name for name, provider in deps.providers.items() if provider.is_synchronous]
    args: dict[str, Any] = {"queue_is_empty": queue_is_empty, "synchronous": synchronous}
    row_ids = deps.database.run(lambda conn: leases.wake_due(conn, step, limit=limit, **args))
    wakes = [Wake(step, row_id) for row_id in row_ids]
    steps = {name: step for name, provider in deps.providers.items() if turns.get_step(provider) == step}
    if step == "submit":  # fails those of a provider whose settings were removed, so that their jobs go on
        waiting = deps.database.run(submission_turns.list_providers)
        steps |= dict.fromkeys(set(waiting) - set(deps.providers), step)
    if steps:
        settings = deps.settings
        wakes += deps.database.run(
            lambda conn: submission_turns.wake(conn, settings, steps, limit=limit, queue_is_empty=queue_is_empty)
        )
    return wakes
