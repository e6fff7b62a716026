"""`moorage pause` and `moorage resume`: stop work on a provider, or all keeping, and go on; webhooks are recorded."""

import os
import socket
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import click

from cli import console
from cli.console import format_age
from db import pauses
from db.connection import Connection, Row, current_time
from moorage.errors import ConfigError
from moorage.text import to_storable
from tasks.step import Deps
from worker import boot

PAGE: Final = 1000
DIRECT: Final = "direct"  # the provider of what a person gave to `moorage keep`


@click.command()
@click.argument("target", metavar="PROVIDER|keep")
@click.option("--reason", help="Why, for whoever looks at moorage status.")
@click.option("--by", help="Who pauses; by default the user and the host.")
@console.json_option
def pause(target: str, reason: str | None, by: str | None, as_json: bool) -> None:
    """
    Pause a provider (nothing of it is polled or fetched) or `keep` (no file is kept).

    Webhooks are recorded and their rows made all the same; work that runs is finished. URLs go on dying: see the
    soonest expiry. Pausing what is paused changes nothing.
    """
    deps = boot.get_deps()
    _check(deps, target)
    who, why = to_storable(by or _user()), to_storable(reason) if reason else None
    began = deps.database.run(partial(pauses.add, target=target, paused_by=who, reason=why))
    rows, at = deps.database.run(_read)
    row = next((row for row in rows if row["target"] == target), None)
    if as_json:
        console.print_json({"target": target, "changed": began is not None, "pause": row})
        return
    click.echo(f"{target} is paused" if began else f"{target} was paused already")
    if row is not None:
        console.print_parts(*format_pause(row, at), f"go on with: moorage resume {target}")


@click.command()
@click.argument("target", metavar="PROVIDER|keep")
@console.json_option
def resume(target: str, as_json: bool) -> None:
    """End a pause: what waited is due at once, and dispatch takes it."""
    deps = boot.get_deps()
    _check(deps, target)
    # Made due first, then set free: after a crash between the two the pause still stands, and is ended again.
    is_paused = any(row["target"] == target for row in deps.database.run(pauses.list_pauses))
    due = _make_due(deps, target) if is_paused else {"outputs": 0, "predictions": 0}
    since = deps.database.run(partial(pauses.remove, target=target))
    if as_json:
        console.print_json({"target": target, "changed": since is not None, "paused_at": since, "due": due})
    elif since is None:
        click.echo(f"{target} is not paused")
    else:
        counts = f"{due['outputs']} outputs and {due['predictions']} predictions were made due at once"
        click.echo(f"{target} goes on; it was paused since {since:%Y-%m-%d %H:%M:%S} UTC; {counts}")


def format_pause(row: Row, at: datetime) -> list[str]:
    """Return a pause in a few lines: since when, by whom, why, what waits, and when the first of its URLs dies."""
    expires_at = row["expires_at"]
    dies = None
    if expires_at is not None:
        dies = f"expired {format_age(expires_at, at)}" if expires_at <= at else format_age(expires_at, at)
    waits = f"{row['outputs']} outputs, {row['predictions']} predictions"
    return console.format_facts(
        {
            "paused": format_age(row["paused_at"], at),
            "by": row["paused_by"],
            "reason": row["reason"],
            "waiting": waits,
            "soonest expiry": dies,
        }
    )


def _check(deps: Deps, target: str) -> None:
    targets = [pauses.KEEP, *sorted({*deps.providers, DIRECT})]
    if target not in targets:
        raise ConfigError(
            f"{console.escape_control_chars(target)!r} cannot be paused: write one of {', '.join(targets)}"
        )


def _read(conn: Connection) -> tuple[list[Row], datetime]:
    return pauses.list_pauses(conn), current_time(conn)


def _make_due(deps: Deps, target: str) -> dict[str, Any]:
    outputs = _page_by_page(deps, partial(pauses.make_outputs_due, target=target, limit=PAGE))
    predictions = _page_by_page(
        deps, partial(pauses.make_predictions_due, target=target, limit=PAGE)
    )  # none for `keep`
    return {"outputs": outputs, "predictions": predictions}


def _page_by_page(deps: Deps, make_due: Callable[[Connection], list[UUID]]) -> int:
    """Run short transactions until one finds less than a page: none holds locks on all rows."""
    total = 0
    while count := len(deps.database.run(make_due)):
        total += count
        if count < PAGE:
            break
    return total


def _user() -> str:
    """Return user@host; a container may know its user only by number."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
