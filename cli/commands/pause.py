"""`moorage pause` and `moorage resume`: pause a provider or all downloads; webhooks are still recorded."""

import os
import socket
from datetime import datetime

import click

from cli import console
from cli.console import format_age
from db import pauses
from db.connection import Row, current_time
from tasks.pauses import pause as begin_pause
from tasks.pauses import resume as end_pause
from worker import boot


@click.command()
@click.argument("target", metavar="PROVIDER|keep")
@click.option("--reason", help="Reason, shown by moorage status.")
@click.option("--by", help="Operator; default: user and host.")
@console.json_option
def pause(target: str, reason: str | None, by: str | None) -> console.Output:
    """
    Pause a provider (no polls, submissions or downloads) or `keep` (no downloads at all).

    Webhooks are still recorded and ingested, and running steps finish. Provider URLs keep expiring: see the soonest
    expiry. Pausing again has no effect.
    """
    deps = boot.get_deps()
    began = begin_pause(deps.database, deps.providers, target, actor=by or _user(), reason=reason)
    rows, now = deps.database.run(lambda conn: (pauses.list_pauses(conn), current_time(conn)))
    row = next((row for row in rows if row["target"] == target), None)
    facts = [*_format_pause(row, now), f"resume with: moorage resume {target}"] if row else []
    lines = [f"{target} is paused" if began else f"{target} was paused already", *facts]
    return {"target": target, "changed": began is not None, "pause": row}, lines


@click.command()
@click.argument("target", metavar="PROVIDER|keep")
@console.json_option
def resume(target: str) -> console.Output:
    """End a pause. Waiting rows are due immediately."""
    deps = boot.get_deps()
    since, due = end_pause(deps.database, deps.providers, target, actor=_user())
    line = f"{target} is not paused"
    if since is not None:
        counts = f"{due['outputs']} outputs and {due['predictions']} predictions are due now"
        line = f"{target} is resumed; it was paused since {since:%Y-%m-%d %H:%M:%S} UTC; {counts}"
    return {"target": target, "changed": since is not None, "paused_at": since, "due": due}, [line]


def _format_pause(row: Row, now: datetime) -> list[str]:
    expires_at = row["expires_at"]
    expiry = None
    if expires_at is not None:
        expiry = f"expired {format_age(expires_at, now)}" if expires_at <= now else format_age(expires_at, now)
    waiting = f"{row['outputs']} outputs, {row['predictions']} predictions"
    facts = {"paused": format_age(row["paused_at"], now), "by": row["paused_by"], "reason": row["reason"]}
    return console.format_facts({**facts, "waiting": waiting, "soonest expiry": expiry})


def _user() -> str:
    """Return user@host. In a container the user may have only a number."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
