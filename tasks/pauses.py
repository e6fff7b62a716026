"""An operator's pauses: begin and end them."""

from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from db import pauses
from db.connection import Connection, Database
from moorage.errors import Refused
from moorage.text import escape_control_chars, to_storable

PAGE: Final = 1000
DIRECT: Final = "direct"  # the provider of files from `moorage keep`


def list_targets(providers: Collection[str]) -> list[str]:
    return [pauses.KEEP, *sorted({*providers, DIRECT})]


def pause(
    database: Database, providers: Collection[str], target: str, *, actor: str, reason: str | None
) -> datetime | None:
    """Pause a target; return the time, or None if it was paused already. Raises Refused: no such target."""
    _check_target(providers, target)
    reason = to_storable(reason) if reason else None
    return database.run(partial(pauses.add, target=target, actor=to_storable(actor), reason=reason))


def resume(
    database: Database, providers: Collection[str], target: str, *, actor: str
) -> tuple[datetime | None, dict[str, int]]:
    """
    End a pause; return since when it was (None: it was not), and how many rows were made due. Raises Refused.

    Rows are made due before the pause is removed: after a crash in between it can be repeated.
    """
    _check_target(providers, target)
    due = {"outputs": 0, "predictions": 0}
    if any(row["target"] == target for row in database.run(pauses.list_pauses)):  # for `keep` no predictions
        for table in due:
            due[table] = _make_due(database, partial(pauses.make_due, table=table, target=target, limit=PAGE))
    return database.run(partial(pauses.remove, target=target, actor=to_storable(actor))), due


def _check_target(providers: Collection[str], target: str) -> None:
    targets = list_targets(providers)
    if target not in targets:
        name = escape_control_chars(target)
        raise Refused(f"{name!r} cannot be paused: use one of {', '.join(targets)}", status=422)


def _make_due(database: Database, make_due: Callable[[Connection], list[UUID]]) -> int:
    """Run short transactions until one returns less than a page, so that none locks all rows; returns the total."""
    total = 0
    while count := len(database.run(make_due)):
        total += count
        if count < PAGE:
            break
    return total
