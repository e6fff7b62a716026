"""The overview with its verdict, queues and workers, sweeps, the runbook, and the stream of events."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import Response

from db.reports.activity import SLOTS, count_activity
from moorage import problems
from providers.base import Provider
from web.api import events
from web.console.session import Operator, render
from web.http.query import Filters, StreamQuery
from web.page import views
from web.services.context import Context

router: Final = APIRouter(include_in_schema=False, redirect_slashes=False, prefix=views.CONSOLE)
RUNBOOK: Final = Path(__file__).with_name("runbook.md")  # a link to docs/runbook.md
# Where each problem is seen or acted on, by its code: the text of the link and its target.
LINKS: Final = {
    "broker_unavailable": ("Queues", "/workers"),
    "workers_silent": ("Workers", "/workers"),
    "queue_without_worker": ("Workers", "/workers"),
    "worker_silent": ("Workers", "/workers"),
    "lease_late": ("Workers", "/workers"),
    "sweep_late": ("Sweeps", "/sweeps"),
    "sweep_fails": ("Sweeps", "/sweeps"),
    "storage_unavailable": ("Pause keep", "/pauses?target=keep"),
    "storage_failing": ("Waiting files", "/outputs?state=waiting"),
    "keep_stalled": ("Waiting files", "/outputs?state=waiting"),
    "expiry_soon": ("Waiting files", "/outputs?state=waiting"),
    "overdue": ("Rows", "/{target}"),
    "paused": ("Resume", "/pauses"),
    "dead_letters": ("Dead letters", "/dead-letters"),
    "attempts_fail": ("Pause", "/pauses?target={target}"),
    "breaker_open": ("Pause", "/pauses?target={target}"),
    "provider_fails": ("Predictions", "/predictions?provider={target}&hours=1"),
    "billing_refused": ("Predictions", "/predictions?provider={target}&hours=1"),
    "webhooks_refused": ("Recover", "/recover?provider={target}"),
    "webhooks_missing": ("Recover", "/recover?provider={target}"),
}
TABLES: Final = ("deliveries", "jobs", "predictions", "outputs", "notifications")
NO_LIST: Final = dict.fromkeys(("webhooks_refused", "webhooks_missing"), LINKS["provider_fails"])  # cannot be recovered
NO_PROVIDER: Final = {**NO_LIST, **dict.fromkeys(("attempts_fail", "breaker_open"), LINKS["expiry_soon"])}
NO_TARGET: Final = {**NO_PROVIDER, "attempts_fail": ("Notifications", "/notifications?state=waiting")}
NO_ACTIVITY: Final = {name: [0.0] * SLOTS for name in ("webhooks", "files", "dead")}


@router.get("")
@router.get("/", name="overview")
async def get_overview(request: Request, caller: Operator, ctx: Context) -> Response:
    status = await ctx.status_reader.read()
    charts = NO_ACTIVITY
    if status["postgresql"] == "ok":
        charts = await ctx.database.read(lambda conn: count_activity(conn, sorted(ctx.providers)))
    due = status.get("oldest_due_seconds") or {}
    return await render(
        request, ctx, caller, "overview.html", title="Overview", status=status, charts=charts, tables=TABLES,
        links=[_choose_link(problem, ctx.providers) for problem in status["problems"]],
        oldest_due=max(due.values(), default=0), paused=status.get("pauses", []),
    )  # fmt: skip


def _choose_link(found: problems.Problem, providers: Mapping[str, Provider]) -> tuple[str, str] | None:
    """Return the text and target of the link to where a problem is seen or acted on, if its target can be."""
    provider = providers.get(found.target or "")
    links = dict(LINKS)
    if provider is None:
        links.update(NO_PROVIDER if found.target else NO_TARGET)
    elif not provider.can_list:
        links.update(NO_LIST)
    if found.code not in links:
        return None
    text, path = links[found.code]
    return text, views.CONSOLE + path.format(target=quote(found.target or ""))


@router.get("/workers")
async def get_workers(request: Request, caller: Operator, ctx: Context) -> Response:
    """Show queues with their consumers, workers with the rows they hold, and workers that hold rows and are silent."""
    status = await ctx.status_reader.read()
    leases = status.get("leases") or ()
    held = Counter(lease["leased_by"].rpartition("/")[0] for lease in leases)
    busy = Counter(task.rpartition("/")[0] for task in {lease["leased_by"] for lease in leases})
    answers: dict[str, Any] = status["worker_queues"] or {}
    workers = [
        {"name": name, "answers": name in answers, "queues": answers.get(name, ()), "held": held[name],
         "busy": busy[name], "size": status["pools"].get(name)}
        for name in sorted({*answers, *held})
    ]  # fmt: skip
    return await render(
        request, ctx, caller, "workers.html", title="Queues and workers", status=status, workers=workers,
        paused=status.get("pauses", []),
    )  # fmt: skip


@router.get("/sweeps")
async def get_sweeps(request: Request, caller: Operator, ctx: Context) -> Response:
    status = await ctx.status_reader.read()
    sweeps, paused = status.get("sweeps", []), status.get("pauses", [])
    return await render(request, ctx, caller, "sweeps.html", title="Sweeps", sweeps=sweeps, paused=paused)


@router.get("/runbook")
async def get_runbook(request: Request, caller: Operator, ctx: Context) -> Response:
    return await render(request, ctx, caller, "runbook.html", title="Runbook", runbook=_render_runbook(), paused=[])


@router.get("/events")
async def get_events(
    params: Filters[StreamQuery], caller: Operator, ctx: Context, last_id: events.LastEventId = None
) -> Response:
    """Return the stream of events that GET /v1/events is, for the session of the console."""
    return await events.stream_events(params, caller, ctx, last_id)


@functools.cache
def _render_runbook() -> Markup:
    """Return the runbook as HTML, its headings with the anchors of GitHub. Links that lead to other files are text."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(RUNBOOK.read_text(encoding="utf-8").partition("\n")[2])
    for heading, title in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"[^\w -]", "", title.content.lower()).replace(" ", "-"))
    html = markdown.renderer.render(tokens, markdown.options, {})
    return Markup(re.sub(r'<a href="[^#][^"]*">(.*?)</a>', r"\1", html, flags=re.DOTALL))  # noqa: S704 (our own file)
