"""Replay, discard or acknowledge the dead letters that match a filter, page by page."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal
from uuid import UUID

from db import dead_letters
from db.connection import Connection, Database
from db.dead_letters import FIRST, DeadLetterFilter
from moorage.errors import Refused
from moorage.model import Wake
from moorage.text import to_storable
from tasks.jobs import replay

Action = Literal["replay", "discard", "acknowledge"]

MAX_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What one page did. The caller publishes the wakes."""

    done: int
    refused: list[dict[str, Any]]  # id, reason
    wakes: list[Wake]
    after: UUID  # the last one that was processed
    remaining: int  # that match and come after it


def apply_to_page(
    database: Database,
    criteria: DeadLetterFilter,
    action: Action,
    actor: str,
    *,
    after: UUID = FIRST,
    note: str = "",
    limit: int = MAX_ROWS,
    seconds: float = float("inf"),
) -> BulkResult:
    """
    Apply the action to those that match and come `after`, newest first, each in its own transaction, for some seconds.

    Those that refuse the action stay as they are. Ids that name no open dead letter are refused, too.
    """
    deadline = time.monotonic() + seconds
    ids = database.run(partial(dead_letters.list_ids, criteria=criteria, after=after, limit=limit))
    refused: list[dict[str, Any]] = []
    if criteria.ids is not None and after == FIRST:
        known = database.run(partial(dead_letters.list_ids, criteria=criteria, after=FIRST, limit=len(criteria.ids)))
        refused = [{"id": x, "reason": "no open dead letter has this id"} for x in criteria.ids if x not in set(known)]
    actions: dict[Action, Callable[..., Wake | None]] = {
        "replay": partial(replay.replay_dead_letter, actor=actor),
        "discard": partial(replay.discard_dead_letter, actor=actor),
        "acknowledge": partial(_acknowledge, actor=actor, note=note),
    }
    done, wakes = 0, []
    for dead_letter_id in ids:
        try:
            wake = database.run(partial(actions[action], dead_letter_id=dead_letter_id))
        except Refused as error:
            refused.append({"id": dead_letter_id, "reason": str(error)})
        else:
            done += 1
            wakes += [wake] if wake else []
        after = dead_letter_id
        if time.monotonic() > deadline:
            break
    remaining = database.run(partial(dead_letters.count_expiring, criteria=criteria, after=after))["matched"]
    return BulkResult(done, refused, wakes, after, remaining)


def _acknowledge(conn: Connection, dead_letter_id: UUID, actor: str, note: str) -> None:
    if not dead_letters.acknowledge(conn, dead_letter_id, actor, to_storable(note)):
        raise Refused(f"dead letter {dead_letter_id} is not open", status=409)
