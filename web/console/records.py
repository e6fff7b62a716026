"""Lists of records with filters in the URL, one record with its history, and the search by id."""

import json
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, get_args
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from db import deliveries, quarantine
from db.connection import Connection, Row, current_time
from db.reports import lists, show
from db.reports.lists import ListKind
from db.reports.records import RecordReport, build_report
from moorage import quarantine_links
from moorage.transitions import TRANSITIONS
from storage import urls
from tasks.bulk_dead_letters import Action
from web.console.formats import redact_body
from web.console.session import ConsoleQuery, Operator, redirect, render
from web.http import query
from web.http.permissions import Level
from web.http.validation import PathId
from web.page import cards, views
from web.services.context import Context

router: Final = APIRouter(include_in_schema=False, redirect_slashes=False, prefix=views.CONSOLE)
ROWS: Final = 50
HOURS: Final = ("1", "6", "24", "168")
NUMBERS: Final = ("attempt", "polls", "bytes")
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "deliveries": (
        "id", "received_at", "provider", "state", "external_id", "job_id", "owner", "attempt", "bytes", "reason",
    ),
    "jobs": ("id", "created_at", "owner", "project_id", "kind", "provider", "state", "category", "reason"),
    "predictions": (
        "id", "created_at", "provider", "model", "external_id", "state", "job_id", "polls", "ended_by", "reason",
    ),
    "outputs": (
        "id", "created_at", "provider", "owner", "job_id", "path", "state", "attempt", "bytes", "expires_at", "reason",
    ),
    "notifications": ("id", "created_at", "type", "state", "attempt", "job_id", "owner", "ended_at", "reason"),
}  # fmt: skip
_SUBJECTS: Final = {"deliveries": "delivery", **{name: name.removesuffix("s") for name in list(COLUMNS)[1:]}}
_GOOD: Final = frozenset({"kept", "succeeded", "applied", "sent", "published", "replayed"})
_BAD: Final = frozenset({"dead", "failed", "lost", "open dead_letter"})


class RecordQuery(query.PageQuery):
    """The filters of a list; unknown names are ignored."""

    model_config = query.IGNORE_UNKNOWN

    state: str = ""
    provider: str = ""
    owner: str = ""
    project_id: str = ""
    category: str = ""
    hours: str = ""

    def to_filters(self, now: datetime) -> dict[str, Any]:
        names = ("state", "provider", "owner", "project_id", "category")
        since = now - timedelta(hours=int(self.hours)) if self.hours in HOURS else None
        return {**{name: getattr(self, name) or None for name in names}, "since": since}


def _add_list(kind: ListKind) -> None:
    @router.get(f"/{kind}")
    async def get_list(request: Request, caller: Operator, ctx: Context) -> Response:
        params = views.parse_query(request, RecordQuery)

        def read(conn: Connection) -> list[Row]:
            filters = params.to_filters(current_time(conn))
            return lists.list_page(conn, kind, filters, ctx.providers, params.before, limit=ROWS + 1)

        rows, next_id = query.split_page(await ctx.database.read(read), ROWS)
        values = {name: str(getattr(params, name)) for name in _FILTERS if getattr(params, name)}
        return await render(
            request, ctx, caller, "list.html", title=kind.capitalize(), columns=COLUMNS[kind], numbers=NUMBERS,
            rows=rows, filters=_build_filters(kind, values, sorted(ctx.providers)), is_filtered=bool(values),
            more=cards.encode_filters(values, before=str(next_id)) if next_id else "",
        )  # fmt: skip


_FILTERS: Final = ("state", "provider", "owner", "project_id", "category", "hours")
for _kind in get_args(ListKind):
    if _kind in COLUMNS:
        _add_list(_kind)


def _build_filters(kind: ListKind, values: dict[str, str], providers: list[str]) -> list[dict[str, Any]]:
    states = sorted({to for _, to in TRANSITIONS[_SUBJECTS[kind]]})
    choices = {"state": states, "provider": providers, "hours": HOURS}
    labels = {"project_id": "Project", "hours": "Within hours"}
    absent = {"deliveries": ("category",), "notifications": ("provider",)}.get(kind, ())
    return [
        {"name": name, "label": labels.get(name, name.capitalize()), "value": values.get(name, ""),
         "choices": choices.get(name)}
        for name in _FILTERS if name not in absent
    ]  # fmt: skip


@router.get("/find")
async def find_record(request: Request, caller: Operator, ctx: Context) -> Response:
    """Redirect to the record that an id names; list the records if it names none or several."""
    name = views.parse_query(request, ConsoleQuery).id.strip()
    providers = sorted({*ctx.providers, "direct"})
    matches = await ctx.database.read(lambda conn: show.find_rows(conn, name, providers))
    if len(matches) == 1:
        return redirect(f"{views.CONSOLE}/show/{matches[0].id}")
    return await render(request, ctx, caller, "matches.html", title="Find", matches=matches, searched=name)


@router.get("/show/{record_id}")
async def get_record(request: Request, record_id: PathId, caller: Operator, ctx: Context) -> Response:
    """Show what `moorage show` does: what is next, the history, rows and facts; of a delivery its body."""

    def read(conn: Connection) -> tuple[RecordReport, bytes | None, Row | None]:
        report = build_report(conn, str(record_id), [])
        body = deliveries.get_body(conn, report.id) if report.subject == "delivery" else None
        return report, body, quarantine.find(conn, report.id)

    report, body, file = await ctx.database.read(read)
    has_link = file is not None and caller.level >= Level.ADMIN
    job_id = report.id if report.subject == "job" else report.facts.get("job_id")
    return await render(
        request, ctx, caller, "show.html", title=f"{report.subject.replace('_', ' ').capitalize()} {report.id}",
        report=report, job_id=job_id, timeline=_build_timeline(report), tables=_build_tables(report),
        facts=_build_facts(report.facts, ctx.asset_base), actions=_list_actions(report),
        body=None if body is None else redact_body(body), asset_base=ctx.asset_base, file=file,
        file_url=quarantine_links.build_link(ctx.settings, report.id, time.time()) if has_link else None,
    )  # fmt: skip


def _build_timeline(report: RecordReport) -> list[Row]:
    """Return the events with the seconds since the one before; of an output its path, of a webhook its id."""
    names = {row["id"]: f"output {row['path']}" for row in report.outputs}
    previous: datetime | None = None
    timeline = []
    for event in report.events:
        since = None if previous is None else max(event["at"] - previous, timedelta()).total_seconds()
        state = event["to_state"] if event["subject"] != "dead_letter" else f"{event['to_state']} dead_letter"
        tone = "good" if state in _GOOD else "bad" if state in _BAD else ""
        name = names.get(event["subject_id"], event["subject"].replace("_", " "))
        timeline.append({**event, "since": since, "subject": name, "tone": tone})
        previous = event["at"]
    return timeline


def _build_tables(report: RecordReport) -> list[tuple[str, tuple[str, ...], list[Row]]]:
    tables: list[tuple[str, tuple[str, ...], list[Row]]] = [
        ("Predictions", ("id", "provider", "model", "external_id", "state", "polls", "ended_by", "reason"),
         report.predictions),
        ("Outputs", ("id", "path", "state", "attempt", "format", "bytes", "key", "reason"), report.outputs),
        ("Webhooks", ("id", "webhook_id", "received_at", "state", "bytes", "reason"), report.deliveries),
        ("Notifications", ("id", "type", "state", "attempt", "ended_at", "reason"), report.notifications),
        ("Dead letters", ("id", "step", "category", "state", "created_at", "closed_by", "reason"),
         report.dead_letters),
    ]  # fmt: skip
    return [(title, columns, rows) for title, columns, rows in tables if rows and rows != [report.facts]]


def _build_facts(facts: Row, asset_base: Any) -> list[tuple[str, Row]]:
    """Return each fact as text, with its link, as a time, or as indented JSON; without those that are not known."""
    shown = []
    for name, value in facts.items():
        if value is None or value in ({}, []) or name in ("id", "state"):
            continue
        link = None
        if name in ("key", "thumb_key"):
            link = urls.build_asset_url(asset_base, value)
        elif isinstance(value, UUID):
            link = f"{views.CONSOLE}/show/{value}"
        fact = {"text": str(value), "link": link, "at": value if isinstance(value, datetime) else None, "json": None}
        if isinstance(value, dict | list):
            fact["json"] = json.dumps(value, indent=2, default=str, ensure_ascii=False)
        shown.append((name, fact))
    return shown


def _list_actions(report: RecordReport) -> list[Row]:
    """Return the buttons of a record: for its open dead letters, and to send an ended notification again."""
    opened = [letter for letter in report.dead_letters if letter["state"] == "open"]
    actions: list[Row] = [
        {"url": f"{views.CONSOLE}/dead-letters/plan", "plan": f"{action}-selected", "ids": [x["id"] for x in opened],
         "label": f"{action.capitalize()} {len(opened)} dead letter{'s' * (len(opened) > 1)}…"}
        for action in get_args(Action) if opened
    ]  # fmt: skip
    if report.subject == "notification" and report.facts["state"] == "sent":
        url = f"{views.CONSOLE}/notifications/{report.id}/resend"
        actions.append({"url": url, "plan": "", "ids": [], "label": "Send again"})
    return actions
