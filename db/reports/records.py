"""Everything recorded about one record: `moorage show --json` and GET /v1/show/{id}."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from db import dead_letters, deliveries, jobs, notifications, outputs, predictions
from db.connection import Connection, Row, current_time
from db.reports.show import RowMatch, find_rows, get_row, list_dead_letters, list_timeline
from moorage.errors import Refused
from moorage.text import escape_control_chars, format_age

Columns = Mapping[str, Any]

_LIVE: Final = frozenset(
    {"new", "unmatched", "open", "keeping", "planned", "submitting", "running", "abandoned", "waiting", "discarding"}
)


@dataclass(frozen=True, slots=True)
class RecordReport:
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


def build_report(conn: Connection, name: str, providers: list[str]) -> RecordReport:
    """Return the report of the record that an id, a prefix of it or a provider's id names. Raises Refused: 404, 409."""
    matches = find_rows(conn, name, providers)
    name = escape_control_chars(name)
    if not matches:
        raise Refused(f"no record matches {name}", status=404)
    rows = [{"job_id": x.id} if x.subject == "job" else get_row(conn, x) or {} for x in matches]
    job_ids = {row["job_id"] for row in rows if row.get("job_id")}
    is_of_job = len(rows) > 1 or rows[0].get("external_id") == name  # beginnings of ids, or a provider's id
    if len(job_ids) == 1 and (is_of_job or matches[0].subject == "job"):
        return _report_job(conn, job_ids.pop())
    if len(matches) > 1:
        listed = ", ".join(f"{match.subject} {match.id}" for match in matches)
        raise Refused(f"ambiguous id: {name} matches {len(matches)} or more records: {listed}", status=409)
    return _report_row(conn, matches[0])


def _report_job(conn: Connection, job_id: UUID) -> RecordReport:
    facts = jobs.get_with_render(conn, job_id) or {}
    job_predictions = predictions.list_by_job(conn, job_id)
    job_outputs = outputs.list_by_job(conn, job_id)
    job_notifications = notifications.list_by_job(conn, job_id)
    webhooks = deliveries.list_by_job(conn, job_id)
    ids = [row["id"] for row in (*job_predictions, *job_outputs, *webhooks, *job_notifications)]
    letters = list_dead_letters(conn, ids)
    events = list_timeline(conn, job_id, ids)
    now = current_time(conn)
    rows: list[tuple[str, Row]] = [("job", facts)]
    rows += [("prediction", row) for row in job_predictions]
    rows += [("output", row) for row in job_outputs]
    rows += [("notification", row) for row in job_notifications]
    return RecordReport(
        "job", job_id, now, facts, job_predictions, job_outputs, webhooks, job_notifications, letters, events,
        describe_next_actions(rows, letters, now),
    )  # fmt: skip


def _report_row(conn: Connection, match: RowMatch) -> RecordReport:
    """Report a row other than a job; for a dead letter its subject, if that is a row."""
    letter = dead_letters.get(conn, match.id) if match.subject == "dead_letter" else None
    target = RowMatch(letter.subject, letter.subject_id) if letter and letter.subject != "message" else match
    facts = asdict(letter) if letter and target is match else get_row(conn, target)
    if facts is None:
        raise Refused(f"{target.subject} {target.id} was deleted", status=404)
    letters = [facts] if target is match and letter else list_dead_letters(conn, [target.id])
    webhooks = deliveries.list_by_prediction(conn, target.id) if target.subject == "prediction" else []
    events = list_timeline(conn, None, [target.id, *(row["id"] for row in (*letters, *webhooks))])
    now = current_time(conn)
    rows = [] if letter and target is match else [(target.subject, facts)]  # a message has no row to describe
    actions = describe_next_actions(rows, letters, now)
    return RecordReport(target.subject, target.id, now, facts, [], [], webhooks, [], letters, events, actions)


def describe_next_actions(rows: Sequence[tuple[str, Columns]], letters: Sequence[Columns], now: datetime) -> list[str]:
    actions = [_describe_row(subject, row, now) for subject, row in rows if row["state"] in _LIVE]
    actions += [f"dead letter: moorage dead replay {x['id']}" for x in letters if x["state"] == "open"]
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
        return f"a late result still counts, next poll {due}"
    if state == "running":
        return f"poll {row['polls'] + 1} {due}, its deadline is {format_age(row['deadline_at'], now)}"
    if state == "discarding":
        return f"its objects are deleted {due}"
    expiry = f", its URL expires {format_age(row['expires_at'], now)}" if row.get("expires_at") else ""
    return f"attempt {row['attempt'] + 1} {due}{expiry}"


def _due(row: Columns, now: datetime) -> str:
    return "now" if row["run_at"] <= now else format_age(row["run_at"], now)
