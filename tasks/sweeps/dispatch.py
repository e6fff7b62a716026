"""The dispatch and discard sweeps: publish wakes for rows that are due."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from db import leases, submission_turns
from moorage.failpoints import failpoint
from moorage.model import Queue, Step, Wake
from tasks.outputs import discard
from tasks.predictions import turns
from tasks.step import Deps, SendWakes

STEPS_BY_QUEUE: Final[Mapping[Queue, tuple[Step, ...]]] = {
    "quick": ("submit", "poll", "notify", "ingest"),
    "keep": ("generate", "keep"),
}
STEPS: Final = tuple(step for steps in STEPS_BY_QUEUE.values() for step in steps)
QUEUE_SHARE: Final = 0.25  # of the free depth, for each step but the last, which may arrive in bursts
MIN_DISCARDS_PER_RUN: Final = 4  # so that discards proceed while the queue stays full

GetQueueDepth = Callable[[Queue], int | None]


def dispatch_due(deps: Deps, get_depth: GetQueueDepth, send: SendWakes, due: Collection[str] = STEPS) -> dict[str, Any]:
    """
    Fill each queue up to MOORAGE_DEV_QUEUE_DEPTH with wakes for the most urgent rows of the steps that are due; returns
    counts by step.

    An empty queue has lost or served its wakes, so that rows woken less than 30 s ago are then woken again.
    """
    sent: dict[str, Any] = {}
    for queue, steps in STEPS_BY_QUEUE.items():
        if not set(steps) & set(due):
            continue
        depth = get_depth(queue)
        if depth is None:
            return {"broker": "unavailable"}
        free, is_empty = deps.settings.constants.queue_depth - depth, depth == 0
        for step in (step for step in steps if step in due):
            limit = free if step == steps[-1] else math.ceil(free * QUEUE_SHARE)
            wakes = _claim_wakes(deps, step, limit, is_empty) if limit > 0 else []
            failpoint("dispatch.after_commit")
            sent[step] = send(wakes) if wakes else 0
            free -= len(wakes)
    return sent


def dispatch_discards(deps: Deps, get_depth: GetQueueDepth, send: SendWakes) -> dict[str, Any]:
    """Wake outputs whose objects are to be deleted, and delete the spooled inputs of settled jobs."""
    depth = get_depth("keep")
    if depth is None:
        return {"broker": "unavailable", "spooled": discard.delete_spooled_inputs(deps)}
    limit = max(deps.settings.constants.queue_depth - depth, MIN_DISCARDS_PER_RUN)
    wakes = _claim_wakes(deps, "discard", limit, depth == 0)
    sent = send(wakes) if wakes else 0
    return {"discarding": sent, "spooled": discard.delete_spooled_inputs(deps)}


def _claim_wakes(deps: Deps, step: Step, limit: int, queue_is_empty: bool) -> list[Wake]:
    synchronous = [name for name, provider in deps.providers.items() if provider.is_synchronous]
    steps = {name: step for name, provider in deps.providers.items() if turns.get_step(provider) == step}
    row_ids = deps.database.run(
        lambda conn: leases.wake_due(conn, step, limit=limit, queue_is_empty=queue_is_empty, synchronous=synchronous)
    )
    wakes = [Wake(step, row_id) for row_id in row_ids]
    if steps:
        wakes += deps.database.run(
            lambda conn: submission_turns.wake(conn, deps.settings, steps, limit=limit, queue_is_empty=queue_is_empty)
        )
    return wakes
