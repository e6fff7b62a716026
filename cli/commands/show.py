"""`moorage show ID`: facts, rows, history and next actions of one record."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import click

from cli import console
from cli.console import format_age, wrap_text
from db.connection import Row
from db.reports.records import RecordReport, build_report
from db.reports.show import MAX_EVENTS
from worker import boot

# title, field of the report, columns of a row's line, what follows in lines of its own
SECTIONS: Final = (
    ("Predictions", "predictions", ("id", "state", "provider", "model", "ended_by"), ("external_id", "reason")),
    ("Outputs", "outputs", ("path", "state", "attempt", "format", "bytes"), ("stored", "reason")),
    ("Deliveries", "deliveries", ("id", "received_at", "state", "bytes"), ("webhook_id", "reason")),
    ("Notifications", "notifications", ("id", "type", "state", "attempt", "ended_at"), ("event_id", "reason")),
    ("Dead letters", "dead_letters", ("id", "state", "subject", "step", "category", "error"), ("reason",)),
)
_LABELS: Final = {"attempt": "attempt {}", "bytes": "{:,} B", "ended_by": "by {}"}


@click.command()
@click.argument("name", metavar="ID")
@console.json_option
def show(name: str) -> console.Output:
    """
    Show the facts, rows, history and next actions of one record.

    ID is the id of a job, render, prediction, output, delivery, notification, dead letter or upload, or at least its
    first 8 characters if they are unique or of one job; or a webhook id. A provider's prediction id shows its job.
    """
    deps = boot.get_deps()
    names = sorted({*deps.providers, "direct"})
    report = deps.database.run(lambda conn: build_report(conn, name, names))
    return report, _format_report(report, deps.storage.build_asset_url)


def _format_report(report: RecordReport, build_url: Callable[[str], str]) -> list[str]:
    outputs = [{**row, "stored": row["key"] and build_url(row["key"])} for row in report.outputs]
    rows = {name: getattr(report, name) for _, name, _, _ in SECTIONS} | {"outputs": outputs}
    lines = [f"{report.subject} {report.id}", *_format_facts(report, build_url)]
    for title, name, columns, details in SECTIONS:
        if rows[name]:
            lines += ["", title, *_format_rows(rows[name], columns, details)]
    lines += ["", "Timeline (UTC)", *_format_timeline(report), ""]
    for action in report.next:
        lines += wrap_text(action, "next: ")
    return lines


def _format_facts(report: RecordReport, build_url: Callable[[str], str]) -> Iterator[str]:
    facts = {name: value for name, value in report.facts.items() if name != "id" and value not in (None, {}, [])}
    if report.facts.get("key"):
        facts["stored"] = build_url(report.facts["key"])
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        yield from wrap_text(console.escape_control_chars(_format_fact(name, value, report.at)), f"  {name:<{width}}  ")


def _format_fact(name: str, value: Any, now: datetime) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d} {format_time(value)} ({format_age(value, now)})"
    if name == "chain" and value:
        return ", then ".join(f"{e['provider']} {e['model']} ({console.format_duration(e['seconds'])})" for e in value)
    return str(value)


def _format_rows(rows: Sequence[Row], columns: Sequence[str], details: Sequence[str]) -> Iterator[str]:
    cells = [[_format_cell(name, row[name]) for name in columns] for row in rows]
    for row, line in zip(rows, console.align(cells), strict=True):
        yield f"  {line}"
        for name in details:
            if row[name] is not None:
                yield from wrap_text(console.escape_control_chars(str(row[name])), f"    {name} ")


def _format_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, UUID):
        return console.shorten_id(value)
    text = format_time(value) if isinstance(value, datetime) else _LABELS.get(name, "{}").format(value)
    return console.escape_control_chars(text)


def _format_timeline(report: RecordReport) -> Iterator[str]:
    """Yield a line for each event: the time, that since the event before, what changed, and who changed it."""
    paths = {row["id"]: row["path"] for row in report.outputs}
    cells: list[tuple[str, ...]] = []
    before = None
    for event in report.events:
        change = (event["from_state"] or "created", event["to_state"])
        subject = str(paths.get(event["subject_id"], event["subject"]))
        actor = (event["actor"] or "").partition("/")[0]  # without the id of the task
        cells.append((format_time(event["at"]), _format_wait(before, event["at"]), subject, " > ".join(change), actor))
        before = event["at"]
    for event, (_, _, subject, _, _), line in zip(report.events, cells, console.align(cells), strict=True):
        reason = console.escape_control_chars(event["reason"] or "")
        fits = len(line) + len(reason) + 4 <= console.get_width()
        yield console.escape_control_chars(f"  {line}  {reason if fits and reason != subject else ''}".rstrip())
        if not fits:
            yield from wrap_text(reason, " " * 24)
    if len(report.events) == MAX_EVENTS:
        yield f"  only the first {MAX_EVENTS} events are shown"


def _format_wait(before: datetime | None, at: datetime) -> str:
    if before is None:
        return f"{at:%Y-%m-%d}"
    seconds = (at - before).total_seconds()
    return f"+{seconds:.2f} s" if seconds < 10 else f"+{console.format_duration(seconds)}"


def format_time(at: datetime) -> str:
    """Return the time of the day with tenths of a second, in UTC."""
    return f"{at.astimezone(UTC):%H:%M:%S}.{at.microsecond // 100_000}"
