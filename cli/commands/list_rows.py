"""`moorage list KIND`: rows of a kind, newest first, one line each."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, get_args
from uuid import UUID

import click

from cli import console
from cli.commands.job import job_option
from cli.commands.recover import Duration
from db.connection import Row, current_time
from db.reports.lists import ListKind, list_page
from moorage.model import DeadLetterState, DeliveryState, JobState, NotificationState, OutputState, PredictionState
from worker import boot

# After id and age; the reason has a line of its own.
COLUMNS: Final[dict[ListKind, tuple[str, ...]]] = {
    "jobs": ("state", "owner", "provider", "category", "project_id"),
    "deliveries": ("state", "provider", "external_id", "bytes"),
    "predictions": ("state", "provider", "external_id", "model"),
    "outputs": ("state", "owner", "provider", "path", "format", "bytes"),
    "dead_letters": ("state", "provider", "step", "category"),
    "notifications": ("state", "owner", "type", "attempt"),
}
STATES: Final[dict[ListKind, Any]] = {
    "jobs": JobState, "deliveries": DeliveryState, "predictions": PredictionState, "outputs": OutputState,
    "dead_letters": DeadLetterState, "notifications": NotificationState,
}  # fmt: skip
KINDS: Final = {name.replace("_", "-"): name for name in get_args(ListKind)}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)), metavar="KIND")
@click.option("--state", help="Filter by state: docs/reference/states.md.")
@click.option("--provider", help="Filter by provider.")
@click.option("--owner", help="Filter by owner.")
@click.option("--project", "project_id", help="Filter by project.")
@click.option("--category", help="Filter by category, for example DOWNLOAD_FAILED.")
@job_option
@click.option("--since", type=Duration(), metavar="DURATION", help="Not older than: 90s, 30m, 2h, 1d.")
@click.option("--before", type=click.UUID, metavar="ID", help="Only rows older than this one: the next page.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Maximum number of rows.")
@console.json_option
def list_rows(
    kind: str, since: timedelta | None, before: UUID | None, limit: int, **filters: str | UUID | None
) -> console.Output:
    """
    List rows of a kind, newest first; `moorage show ID` shows one of them.

    KIND is jobs, deliveries, predictions, outputs, dead-letters or notifications.
    """
    deps, name = boot.get_deps(), KINDS[kind]
    if filters["state"] not in (None, *(states := get_args(STATES[name]))):
        raise click.BadParameter(f"use one of {', '.join(states)}", param_hint="--state")
    database = deps.database
    now = database.run(current_time)
    values = {**filters, "since": since and now - since}
    rows = database.run(lambda conn: list_page(conn, name, values, deps.providers, before, limit=limit))
    following = rows[-1]["id"] if len(rows) == limit else None
    lines = _format_rows(rows, COLUMNS[name], now) if rows else [f"no {kind} match"]
    lines += [f"next page: --before {following}"] if following else []
    return {"kind": name, "rows": rows, "next": following}, lines


def _format_rows(rows: Sequence[Row], columns: Sequence[str], now: datetime) -> list[str]:
    """Return a line for each row, and one for its reason; each is cut off at the width of the terminal."""
    cells = [("ID", "AGE", *(column.upper() for column in columns))]
    for row in rows:
        age = console.format_age(row["received_at" if "received_at" in row else "created_at"], now).removesuffix(" ago")
        cells.append((console.shorten_id(row["id"]), age, *(_format_value(row[column]) for column in columns)))
    lines = []
    for line, row in zip(console.align(cells), [{}, *rows], strict=True):
        lines.append(line)
        lines += [f"    {_format_value(row['reason'])}"] if row.get("reason") else []
    width = console.get_width()
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else console.escape_control_chars(str(value))
