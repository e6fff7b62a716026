"""`moorage show ID`: the whole story of one thing: its facts, its rows, what happened, what happens next."""

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
from db.reports import show as history
from db.reports.show import RowMatch
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
    """All that is recorded of one thing; the shape of --json."""

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
    Tell the whole story of ID, which may be a job's, render's, prediction's, output's, delivery's, notification's, dead
    letter's or upload's.

    The first 8 characters of an id or more serve when they are enough; a provider's id of a prediction, or the id of a
    webhook, serves too.
    """
    deps = boot.get_deps()
    names = sorted({*deps.providers, "direct"})
    story = deps.database.run(lambda conn: _tell(conn, name, names))
    if as_json:
        console.print_json(story)
    else:
        console.print_parts(*_page(story))


def _tell(conn: Connection, name: str, providers: list[str]) -> RecordReport:
    found = history.find_rows(conn, name, providers)
    if not found:
        raise ConfigError(f"nothing is known as {console.escape_control_chars(name)}")
    if len(found) > 1:
        listed = ", ".join(f"{match.subject} {match.id}" for match in found)
        raise ConfigError(f"{len(found)} or more rows are known as {console.escape_control_chars(name)}: {listed}")
    return _of_job(conn, found[0].id) if found[0].subject == "job" else _of_row(conn, found[0])


def _of_job(conn: Connection, job_id: UUID) -> RecordReport:
    facts = jobs.get_with_render(conn, job_id) or {}
    tried, files = predictions.list_by_job(conn, job_id), outputs.list_by_job(conn, job_id)
    heard = [delivery for row in tried for delivery in deliveries.list_by_prediction(conn, row["id"])]
    sent = notifications.list_by_job(conn, job_id)
    rows = [row["id"] for row in (*tried, *files, *heard, *sent)]
    letters = history.list_dead_letters(conn, rows)
    events = history.list_timeline(conn, job_id, rows)
    at = current_time(conn)
    live = [*(("prediction", row) for row in tried), *(("output", row) for row in files)]
    leased = [(s, _leased(conn, s, row)) for s, row in live]
    told = describe_next_actions([("job", facts), *leased, *(("notification", row) for row in sent)], letters, at)
    return RecordReport("job", job_id, at, facts, tried, files, heard, sent, letters, events, told)


def _leased(conn: Connection, subject: str, row: Row) -> Row:
    """Return a row of a job with the end of its lease, which the lists of a job's rows leave out."""
    return history.get_row(conn, RowMatch(subject, row["id"])) or row if row["leased_by"] else row


def _of_row(conn: Connection, match: RowMatch) -> RecordReport:
    """Tell of a delivery, a prediction, an output, a notification, or of the row that a dead letter is about."""
    letter = dead_letters.get(conn, match.id) if match.subject == "dead_letter" else None
    about = RowMatch(letter.subject, letter.subject_id) if letter and letter.subject != "message" else match
    facts = asdict(letter) if letter and about is match else history.get_row(conn, about)
    if facts is None:
        raise ConfigError(f"{about.subject} {about.id} is gone")
    letters = [facts] if about is match and letter else history.list_dead_letters(conn, [about.id])
    heard = deliveries.list_by_prediction(conn, about.id) if about.subject == "prediction" else []
    events = history.list_timeline(conn, None, [about.id, *(x["id"] for x in letters), *(x["id"] for x in heard)])
    at = current_time(conn)
    told = describe_next_actions([(about.subject, facts)], letters, at)
    return RecordReport(about.subject, about.id, at, facts, [], [], heard, [], letters, events, told)


def _page(story: RecordReport) -> list[Table | str]:
    shown = {k: _fact(k, v, story.at) for k, v in story.facts.items()}
    return [
        f"{story.subject} {story.id}",
        *(f"  {line}" for line in console.format_facts({k: v for k, v in shown.items() if k != "id" and v != {}})),
        "",
        *_rows(story),
        *_timeline(story),
        *(f"next: {line}" for line in story.next),
    ]


def _fact(name: str, value: Any, at: datetime) -> Any:
    if isinstance(value, datetime):
        return f"{value} ({format_age(value, at)})"
    if name == "chain" and value:
        return ", then ".join(f"{e['provider']} {e['model']} ({console.format_duration(e['seconds'])})" for e in value)
    return value


def _rows(story: RecordReport) -> list[Table]:
    wanted: list[tuple[str, list[Row], tuple[str, ...]]] = [
        ("Predictions", story.predictions, _PREDICTION),
        ("Outputs", story.outputs, ("idx", "path", "state", "attempt", "format", "bytes", "key", "reason")),
        ("Deliveries", story.deliveries, ("id", "webhook_id", "received_at", "state", "bytes", "reason")),
        ("Notifications", story.notifications, ("id", "type", "event_id", "state", "attempt", "ended_at", "reason")),
        ("Dead letters", story.dead_letters, ("id", "subject", "step", "category", "error", "state", "reason")),
    ]
    return [
        console.build_table(title, columns, ([_short(row[column], story.at) for column in columns] for row in rows))
        for title, rows, columns in wanted
        if rows
    ]


def _timeline(story: RecordReport) -> list[Table | str]:
    rows = [
        (format_age(e["at"], story.at), _subject(story, e), _edge(e), _short(e["reason"], story.at), e["actor"])
        for e in story.events
    ]
    made: list[Table | str] = [console.build_table("Timeline", ("when", "what", "edge", "reason", "by"), rows)]
    if len(story.events) == history.MAX_EVENTS:
        made.append(f"only the first {history.MAX_EVENTS} events are shown")
    return made


def _subject(story: RecordReport, event: Row) -> str:
    """Return an event's row in few characters: an output by its place."""
    place = {row["id"]: row["path"] for row in story.outputs}
    if event["subject_id"] in place:
        return f"output {place[event['subject_id']]}"
    return str(event["subject"])


def _edge(event: Row) -> str:
    return f"{event['from_state']} > {event['to_state']}" if event["from_state"] else f"made {event['to_state']}"


def _short(value: Any, at: datetime) -> Any:
    if isinstance(value, datetime):
        return format_age(value, at)
    return value[:_REASON_CHARS] if isinstance(value, str) else value


def describe_next_actions(rows: Sequence[tuple[str, Columns]], letters: Sequence[Columns], now: datetime) -> list[str]:
    """
    Return what happens next, a line a live row and a line an open dead letter; one line that says so when it is over.

    Args:
        rows: each with its subject: delivery, job, prediction, output or notification.
    """
    told = [_next(subject, row, now) for subject, row in rows if row["state"] in _LIVE]
    told += [f"dead letter {x['id']} waits: moorage dead replay {x['id']}" for x in letters if x["state"] == "open"]
    return told or ["nothing more: it is over"]


def _next(subject: str, row: Columns, now: datetime) -> str:
    if subject == "job":
        return _job(row, now)
    name = _name(subject, row)
    if row.get("leased_by"):
        lease = format_age(row["leased_until"], now)
        return f"{name}: attempt {row['attempt']} runs at {row['leased_by']}, its lease ends {lease}"
    return f"{name}: {_when(row, now)}"


def _name(subject: str, row: Columns) -> str:
    if subject == "output":
        return f"output {row['path']}"
    return f"{subject} {row['external_id'] or row['id']}" if subject == "prediction" else subject


def _job(row: Columns, now: datetime) -> str:
    if row["state"] == "open":
        return f"job: waits for files, its deadline is {format_age(row['deadline_at'], now)}"
    return f"job: ends with its last file, which is counted again {_due(row, now)}"


def _when(row: Columns, now: datetime) -> str:
    state, due = row["state"], _due(row, now)
    if state == "unmatched":
        return f"looked up again {due}, given up {format_age(row['unmatched_until'], now)}"
    if state == "planned":
        return f"submitted {due}, if there is room at {row['provider']}"
    if state == "submitting":
        return f"looked up {due}: whether {row['provider']} made it is not known"
    if state == "abandoned" and row["external_id"] is None:
        return f"perhaps it was never made: only its webhook can tell of it, given up {due}"
    if state == "abandoned":
        return f"a late answer still counts, asked a last time {due}"
    if state == "running":
        return f"poll {row['polls'] + 1} {due}, its deadline is {format_age(row['deadline_at'], now)}"
    if state == "discarding":
        return f"its objects are deleted {due}"
    dies = f", its URL dies {format_age(row['expires_at'], now)}" if row.get("expires_at") else ""
    return f"attempt {row['attempt'] + 1} {due}{dies}"


def _due(row: Columns, now: datetime) -> str:
    return "now" if row["run_at"] <= now else format_age(row["run_at"], now)
