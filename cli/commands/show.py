"""`moorage show ID`: facts, rows, history and next actions of one record."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import click
from rich.table import Table

from cli import console
from cli.console import format_age
from db import dead_letters, deliveries, jobs, notifications, outputs, predictions
from db.connection import Connection, Row, current_time
from db.reports.show import MAX_EVENTS, RowMatch, find_rows, get_row, list_dead_letters, list_timeline
from moorage.errors import ConfigError
from worker import boot

_REASON_CHARS = 160
_PREDICTION = ("id", "provider", "model", "external_id", "state", "polls", "ended_by", "reason")

Columns = Mapping[str, Any]

_LIVE: Final = frozenset(
    {"new", "unmatched", "open", "keeping", "planned", "submitting", "running", "abandoned", "waiting", "discarding"}
)


@dataclass(frozen=True, slots=True)
class RecordReport:
    """Everything recorded about one record; the structure of --json."""

    subject: str
    id: UUID
    at: datetime
    facts: Row
    predictions: list[Row]
    outputs: list[Row]
    deliveries: list[Row]
    notifications: list[Row]
    dead_letters: list[Row]
    events: list[Row]
    next: list[str]


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
    report = deps.database.run(lambda conn: _build_report(conn, name, names))
    if as_json:
        console.print_json(report)
    else:
        console.print_parts(*_format_report(report))


def _build_report(conn: Connection, name: str, providers: list[str]) -> RecordReport:
    matches = find_rows(conn, name, providers)
    name = console.escape_control_chars(name)
    if not matches:
        raise ConfigError(f"no record matches {name}")
    if len(matches) > 1:
        listed = ", ".join(f"{match.subject} {match.id}" for match in matches)
        raise ConfigError(f"ambiguous id: {name} matches {len(matches)} or more records: {listed}")
    return _report_job(conn, matches[0].id) if matches[0].subject == "job" else _report_row(conn, matches[0])


def _report_job(conn: Connection, job_id: UUID) -> RecordReport:
    facts = jobs.get_with_render(conn, job_id) or {}
    job_predictions, job_outputs = predictions.list_by_job(conn, job_id), outputs.list_by_job(conn, job_id)
    job_notifications = notifications.list_by_job(conn, job_id)
    webhooks = [delivery for row in job_predictions for delivery in deliveries.list_by_prediction(conn, row["id"])]
    ids = [row["id"] for row in (*job_predictions, *job_outputs, *webhooks, *job_notifications)]
    letters = list_dead_letters(conn, ids)
    events = list_timeline(conn, job_id, ids)
    now = current_time(conn)
    rows: list[tuple[str, Row]] = [("job", facts)]
    rows += [("prediction", _add_lease(conn, "prediction", row)) for row in job_predictions]
    rows += [("output", _add_lease(conn, "output", row)) for row in job_outputs]
    rows += [("notification", row) for row in job_notifications]
    return RecordReport(
        "job", job_id, now, facts, job_predictions, job_outputs, webhooks, job_notifications, letters, events,
        describe_next_actions(rows, letters, now),
    )  # fmt: skip


def _add_lease(conn: Connection, subject: str, row: Row) -> Row:
    """Return a row with the end of its lease, which the lists of a job's rows do not contain."""
    return get_row(conn, RowMatch(subject, row["id"])) or row if row["leased_by"] else row


def _report_row(conn: Connection, match: RowMatch) -> RecordReport:
    """Report a row other than a job; for a dead letter its subject, if that is a row."""
    letter = dead_letters.get(conn, match.id) if match.subject == "dead_letter" else None
    target = RowMatch(letter.subject, letter.subject_id) if letter and letter.subject != "message" else match
    facts = asdict(letter) if letter and target is match else get_row(conn, target)
    if facts is None:
        raise ConfigError(f"{target.subject} {target.id} was deleted")
    letters = [facts] if target is match and letter else list_dead_letters(conn, [target.id])
    webhooks = deliveries.list_by_prediction(conn, target.id) if target.subject == "prediction" else []
    events = list_timeline(conn, None, [target.id, *(row["id"] for row in (*letters, *webhooks))])
    now = current_time(conn)
    actions = describe_next_actions([(target.subject, facts)], letters, now)
    return RecordReport(target.subject, target.id, now, facts, [], [], webhooks, [], letters, events, actions)


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


def describe_next_actions(rows: Sequence[tuple[str, Columns]], letters: Sequence[Columns], now: datetime) -> list[str]:
    actions = [_describe_row(subject, row, now) for subject, row in rows if row["state"] in _LIVE]
    actions += [
        f"dead letter {x['id']} is open: moorage dead replay {x['id']}" for x in letters if x["state"] == "open"
    ]
    return actions or ["nothing: it has ended"]


def _describe_row(subject: str, row: Columns, now: datetime) -> str:
    if subject == "job" and row["state"] == "open":
        return f"job: waits for files, its deadline is {format_age(row['deadline_at'], now)}"
    if subject == "job":
        return f"job: ends with its last file; recounted {_due(row, now)}"
    label = {"output": "path", "prediction": "external_id"}.get(subject)
    name = f"{subject} {row[label] or row['id']}" if label else subject
    if row.get("leased_by"):
        lease = format_age(row["leased_until"], now)
        return f"{name}: attempt {row['attempt']} runs at {row['leased_by']}, its lease ends {lease}"
    return f"{name}: {_describe_wait(row, now)}"


def _describe_wait(row: Columns, now: datetime) -> str:
    state, due = row["state"], _due(row, now)
    if state == "unmatched":
        return f"matched again {due}, given up {format_age(row['unmatched_until'], now)}"
    if state == "planned":
        return f"submitted {due} if {row['provider']} has capacity"
    if state == "submitting":
        return f"looked up {due}: it is unknown whether {row['provider']} created it"
    if state == "abandoned" and row["external_id"] is None:
        return f"possibly never created: only its webhook can identify it, given up {due}"
    if state == "abandoned":
        return f"a late result still counts, last poll {due}"
    if state == "running":
        return f"poll {row['polls'] + 1} {due}, its deadline is {format_age(row['deadline_at'], now)}"
    if state == "discarding":
        return f"its objects are deleted {due}"
    expiry = f", its URL expires {format_age(row['expires_at'], now)}" if row.get("expires_at") else ""
    return f"attempt {row['attempt'] + 1} {due}{expiry}"


def _due(row: Columns, now: datetime) -> str:
    return "now" if row["run_at"] <= now else format_age(row["run_at"], now)
