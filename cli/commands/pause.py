"""`moorage pause` and `moorage resume`: pause a provider or all downloads; webhooks are still recorded."""

import os
import socket
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final
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
DIRECT: Final = "direct"  # the provider of files from `moorage keep`


@click.command()
@click.argument("target", metavar="PROVIDER|keep")
@click.option("--reason", help="Reason, shown by moorage status.")
@click.option("--by", help="Operator; default: user and host.")
@console.json_option
def pause(target: str, reason: str | None, by: str | None, as_json: bool) -> None:
    """
    Pause a provider (no polls, submissions or downloads) or `keep` (no downloads at all).

    Webhooks are still recorded and ingested, and running steps finish. Provider URLs keep expiring: see the soonest
    expiry. Pausing again has no effect.
    """
    deps = boot.get_deps()
    _check_target(deps, target)
    paused_by, reason = to_storable(by or _user()), to_storable(reason) if reason else None
    began = deps.database.run(partial(pauses.add, target=target, paused_by=paused_by, reason=reason))
    rows, now = deps.database.run(lambda conn: (pauses.list_pauses(conn), current_time(conn)))
    row = next((row for row in rows if row["target"] == target), None)
    if as_json:
        console.print_json({"target": target, "changed": began is not None, "pause": row})
        return
    click.echo(f"{target} is paused" if began else f"{target} was paused already")
    if row is not None:
        console.print_parts(*format_pause(row, now), f"resume with: moorage resume {target}")


@click.command()
@click.argument("target", metavar="PROVIDER|keep")
@console.json_option
def resume(target: str, as_json: bool) -> None:
    """End a pause. Waiting rows are due immediately."""
    deps = boot.get_deps()
    _check_target(deps, target)
    # Rows are made due before the pause is removed: after a crash in between, the command can be repeated.
    is_paused = any(row["target"] == target for row in deps.database.run(pauses.list_pauses))
    due = {"outputs": 0, "predictions": 0}
    if is_paused:  # for `keep` no predictions
        due["outputs"] = _make_due_in_batches(deps, partial(pauses.make_outputs_due, target=target, limit=PAGE))
        due["predictions"] = _make_due_in_batches(deps, partial(pauses.make_predictions_due, target=target, limit=PAGE))
    since = deps.database.run(partial(pauses.remove, target=target))
    if as_json:
        console.print_json({"target": target, "changed": since is not None, "paused_at": since, "due": due})
    elif since is None:
        click.echo(f"{target} is not paused")
    else:
        counts = f"{due['outputs']} outputs and {due['predictions']} predictions are due now"
        click.echo(f"{target} is resumed; it was paused since {since:%Y-%m-%d %H:%M:%S} UTC; {counts}")


def format_pause(row: Row, now: datetime) -> list[str]:
    expires_at = row["expires_at"]
    expiry = None
    if expires_at is not None:
        expiry = f"expired {format_age(expires_at, now)}" if expires_at <= now else format_age(expires_at, now)
    waiting = f"{row['outputs']} outputs, {row['predictions']} predictions"
    facts = {"paused": format_age(row["paused_at"], now), "by": row["paused_by"], "reason": row["reason"]}
    return console.format_facts({**facts, "waiting": waiting, "soonest expiry": expiry})


def _check_target(deps: Deps, target: str) -> None:
    targets = [pauses.KEEP, *sorted({*deps.providers, DIRECT})]
    if target not in targets:
        name = console.escape_control_chars(target)
        raise ConfigError(f"{name!r} cannot be paused: use one of {', '.join(targets)}")


def _make_due_in_batches(deps: Deps, make_due: Callable[[Connection], list[UUID]]) -> int:
    """Run short transactions until one returns less than a page, so that none locks all rows; returns the total."""
    total = 0
    while count := len(deps.database.run(make_due)):
        total += count
        if count < PAGE:
            break
    return total


def _user() -> str:
    """Return user@host. In a container the user may have only a number."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
