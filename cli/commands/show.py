"""`moorage show ID`: facts, rows, history and next actions of one record."""

from datetime import datetime
from typing import Any

import click
from rich.table import Table

from cli import console
from cli.console import format_age
from db.connection import Row
from db.reports.records import RecordReport, build_report
from db.reports.show import MAX_EVENTS
from worker import boot

_REASON_CHARS = 160
_PREDICTION = ("id", "provider", "model", "external_id", "state", "polls", "ended_by", "reason")


@click.command()
@click.argument("name", metavar="ID")
@console.json_option
def show(name: str, as_json: bool) -> None:
    """
    Show the facts, rows, history and next actions of one record.

    ID is the id of a job, render, prediction, output, delivery, notification, dead letter or upload, or at least its
    first 8 characters if they are unique; or a provider's prediction id, or a webhook id.
    """
    deps = boot.get_deps()
    names = sorted({*deps.providers, "direct"})
    report = deps.database.run(lambda conn: build_report(conn, name, names))
    if as_json:
        console.print_json(report)
    else:
        console.print_parts(*_format_report(report))


def _format_report(report: RecordReport) -> list[Table | str]:
    facts = {name: _format_fact(name, value, report.at) for name, value in report.facts.items()}
    lines = console.format_facts({name: value for name, value in facts.items() if name != "id" and value != {}})
    return [
        f"{report.subject} {report.id}",
        *(f"  {line}" for line in lines),
        "",
        *_build_row_tables(report),
        *_build_timeline(report),
        *(f"next: {line}" for line in report.next),
    ]


def _format_fact(name: str, value: Any, now: datetime) -> Any:
    if isinstance(value, datetime):
        return f"{value} ({format_age(value, now)})"
    if name == "chain" and value:
        return ", then ".join(f"{e['provider']} {e['model']} ({console.format_duration(e['seconds'])})" for e in value)
    return value


def _build_row_tables(report: RecordReport) -> list[Table]:
    tables: list[tuple[str, list[Row], tuple[str, ...]]] = [
        ("Predictions", report.predictions, _PREDICTION),
        ("Outputs", report.outputs, ("idx", "path", "state", "attempt", "format", "bytes", "key", "reason")),
        ("Deliveries", report.deliveries, ("id", "webhook_id", "received_at", "state", "bytes", "reason")),
        ("Notifications", report.notifications, ("id", "type", "event_id", "state", "attempt", "ended_at", "reason")),
        ("Dead letters", report.dead_letters, ("id", "subject", "step", "category", "error", "state", "reason")),
    ]
    return [
        console.build_table(title, names, ([_format_value(row[name], report.at) for name in names] for row in rows))
        for title, rows, names in tables
        if rows
    ]


def _build_timeline(report: RecordReport) -> list[Table | str]:
    paths = {row["id"]: f"output {row['path']}" for row in report.outputs}
    columns: console.RecordColumns = {
        "time": lambda event: format_age(event["at"], report.at),
        "subject": lambda event: paths.get(event["subject_id"], event["subject"]),
        "transition": lambda x: (f"{x['from_state']} > " if x["from_state"] else "created ") + x["to_state"],
        "reason": lambda event: _format_value(event["reason"], report.at),
        "actor": "actor",
    }
    parts: list[Table | str] = [console.build_record_table("Timeline", columns, report.events)]
    if len(report.events) == MAX_EVENTS:
        parts.append(f"only the first {MAX_EVENTS} events are shown")
    return parts


def _format_value(value: Any, now: datetime) -> Any:
    if isinstance(value, datetime):
        return format_age(value, now)
    return value[:_REASON_CHARS] if isinstance(value, str) else value
