"""What operators do: dead letters, pauses, recovery from a provider's list, notifications sent again."""

from datetime import datetime
from functools import partial
from typing import Any, Final, get_args
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import NonNegativeInt
from starlette.responses import Response

from db import dead_letters
from db.connection import Connection, Row, current_time
from db.dead_letters import FIRST, DeadLetterFilter
from moorage.errors import Category
from tasks import pauses
from tasks.bulk_dead_letters import Action, apply_to_page
from tasks.jobs import replay
from web.api import operator_actions
from web.api.operator_actions import RecoveryCreate
from web.console.session import Admin, ConsoleQuery, Form, Operator, parse_form, render, show_result
from web.http import query
from web.http.problems import Problem
from web.http.validation import PathId
from web.page import views
from web.services.context import Context

router: Final = APIRouter(include_in_schema=False, redirect_slashes=False, prefix=views.CONSOLE)
CUT_SHORT: Final = "The list took longer than 20 s, the rest was not read: choose fewer hours, or use moorage recover."
MATCHES: Final[dict[str, str]] = {
    "unknown": "not registered: to be registered and polled",
    "live": "registered, not ended: to be polled now",
    "ended": "registered and ended: nothing to do",
    "lost": "registered and lost: replay their dead letters",
    "foreign": "with a webhook outside PUBLIC_URL: ignored (moorage recover --all includes them)",
}


@router.get("/pauses")
async def get_pauses(request: Request, caller: Operator, ctx: Context) -> Response:
    """Show what is paused, and the form to pause a provider or all downloads."""
    chosen, targets = views.parse_query(request, ConsoleQuery).target, pauses.list_targets(ctx.providers)
    return await render(request, ctx, caller, "pauses.html", title="Pauses", targets=targets, chosen=chosen)


@router.post("/pauses")
async def post_pause(form: Form, caller: Admin, ctx: Context) -> Response:
    target, reason = form.get("target", [""])[0], form.get("reason", [""])[0]
    since = await ctx.database.run(
        partial(pauses.pause, providers=ctx.providers, target=target, actor=caller.actor, reason=reason)
    )
    return show_result("/pauses", f"{target} is paused." if since else f"{target} was paused already.")


@router.post("/pauses/resume")
async def post_resume(form: Form, caller: Admin, ctx: Context) -> Response:
    target = form.get("target", [""])[0]
    since, due = await ctx.database.run(
        partial(pauses.resume, providers=ctx.providers, target=target, actor=caller.actor)
    )
    counts = f"{due['outputs']} outputs and {due['predictions']} predictions are due now."
    return show_result("/pauses", f"{target} is resumed: {counts}" if since else f"{target} was not paused.")


@router.post("/notifications/{notification_id}/resend")
async def post_resend(notification_id: PathId, caller: Admin, ctx: Context) -> Response:
    resend = partial(replay.resend_notification, notification_id=notification_id, actor=caller.actor)
    ctx.relay.enqueue(await ctx.database.transaction(resend))
    return show_result(f"/show/{notification_id}", "The notification is sent again.")


@router.get("/recover")
async def get_recover(request: Request, caller: Operator, ctx: Context) -> Response:
    """Show the form; with a number of hours also what a recovery would do, which changes nothing."""
    params, plan = views.parse_query(request, ConsoleQuery), None
    if params.provider in ctx.providers and params.hours:
        body = RecoveryCreate(provider=params.provider, seconds=params.hours * 3600)
        plan = await operator_actions.create_recovery(ctx, caller, body)
    names = sorted(name for name, provider in ctx.providers.items() if provider.can_list)
    return await render(
        request, ctx, caller, "recover.html", title="Recover", providers=names, chosen=params.provider,
        chosen_hours=params.hours or 2, plan=plan, texts=MATCHES,
        cut_short="" if plan is None or plan.is_complete else CUT_SHORT,
    )  # fmt: skip


@router.post("/recover")
async def post_recover(form: Form, caller: Admin, ctx: Context) -> Response:
    """Read the provider's list again, register and poll."""
    params = parse_form(form, ConsoleQuery)
    if params.provider not in ctx.providers or not params.hours:
        raise Problem(422, "choose a provider and a time in the form")
    body = RecoveryCreate(provider=params.provider, seconds=params.hours * 3600, dry_run=False)
    result = await operator_actions.create_recovery(ctx, caller, body)
    text = f"{result.registered} registered, {result.polled} are polled now."
    return show_result("/recover", text if result.is_complete else f"{text} {CUT_SHORT}")


SHOWN: Final = 100
PER_REQUEST: Final = 100
PAGE_SECONDS: Final = 2.0
FILTERS: Final = ("provider", "step", "category", "error")
DONE: Final[dict[Action, str]] = {"replay": "replayed", "discard": "discarded", "acknowledge": "acknowledged"}
STEPS: Final = ("ingest", "submit", "poll", "keep", "discard", "notify", "drain")
CATEGORIES: Final = get_args(Category)


class DeadLetterQuery(query.BaseQuery):
    model_config = query.IGNORE_UNKNOWN

    provider: str = ""
    step: str = ""
    category: str = ""
    error: str = ""

    @property
    def filters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FILTERS if getattr(self, name)}


class ActionForm(DeadLetterQuery):
    """What is selected, the time of the plan, and how far it is."""

    plan: str = ""  # the action, then `-all` or `-selected`
    id: tuple[UUID, ...] = ()  # without any, all that match the filters
    until: datetime | None = None
    after: UUID = FIRST
    note: str = ""
    why: str = ""  # the reason of a refusal
    total: NonNegativeInt = 0
    done: NonNegativeInt = 0
    refused: NonNegativeInt = 0

    @property
    def criteria(self) -> DeadLetterFilter:
        is_by_id = bool(self.id) or self.plan.endswith("-selected")
        return DeadLetterFilter(**({"ids": list(self.id)} if is_by_id else self.filters), until=self.until)

    def list_fields(self, **changes: Any) -> list[tuple[str, str]]:
        """Return the hidden fields of the next form."""
        fields = self.model_copy(update=changes).model_dump(mode="json", exclude={"plan"}, exclude_defaults=True)
        return [(name, str(x)) for name, value in fields.items() for x in (value if name == "id" else [value])]


@router.get("/dead-letters")
async def get_dead_letters(request: Request, caller: Operator, ctx: Context) -> Response:
    """Show open dead letters grouped by cause, and the newest ones to select from."""
    filters = views.parse_query(request, DeadLetterQuery).filters
    criteria = DeadLetterFilter(**filters)

    def read(conn: Connection) -> tuple[list[Row], list[Any]]:
        groups = dead_letters.count_groups(conn, criteria)
        return groups, dead_letters.list_newest(conn, criteria, limit=SHOWN)

    groups, letters = await ctx.database.read(read)
    for group in groups:
        group["query"] = urlencode({name: group[name] for name in FILTERS if group[name] != "-"})
    total = sum(group["count"] for group in groups)
    return await render(
        request, ctx, caller, "dead_letters.html", title="Dead letters", groups=groups, letters=letters, total=total,
        more=total > SHOWN, filters={**dict.fromkeys(FILTERS, ""), **filters}, query=urlencode(filters), steps=STEPS,
        categories=CATEGORIES,
    )  # fmt: skip


@router.post("/dead-letters/plan")
async def plan_action(request: Request, fields: Form, caller: Admin, ctx: Context) -> Response:
    """Show what an action would apply to, before it is confirmed. A later dead letter is not part of it."""
    form = parse_form(fields, ActionForm)
    action, _, scope = form.plan.partition("-")
    if action not in get_args(Action):
        raise Problem(422, "choose an action in the list")
    if scope == "all":
        form = form.model_copy(update={"id": ()})

    def read(conn: Connection) -> tuple[list[Row], Row, datetime]:
        groups = dead_letters.count_groups(conn, form.criteria)
        return groups, dead_letters.count_expiring(conn, form.criteria), current_time(conn)

    groups, counts, now = await ctx.database.read(read)
    return await render(
        request, ctx, caller, "dead_plan.html", title=f"{action.capitalize()} dead letters", action=action,
        groups=groups, counts=counts, fields=form.list_fields(until=now, total=counts["matched"]),
    )  # fmt: skip


@router.post("/dead-letters/{action}")
async def apply_action(request: Request, action: Action, fields: Form, caller: Admin, ctx: Context) -> Response:
    """Apply a confirmed action to the next rows of its plan; show how far it is, or redirect to the list."""
    form = parse_form(fields, ActionForm)
    if form.until is None:
        raise Problem(422, "an action needs a plan: open the list again")
    apply = partial(apply_to_page, criteria=form.criteria, action=action, actor=caller.actor, after=form.after)
    page = await ctx.run_and_wake(partial(apply, note=form.note.strip(), limit=PER_REQUEST, seconds=PAGE_SECONDS))
    done, refused = form.done + page.done, form.refused + len(page.refused)
    why = page.refused[0]["reason"] if page.refused else form.why
    if page.remaining:
        return await render(
            request, ctx, caller, "dead_progress.html", title=f"{action.capitalize()} dead letters", action=action,
            verb=DONE[action], done=done, refused=refused, total=form.total,
            fields=form.list_fields(after=page.after, done=done, refused=refused, why=why),
        )  # fmt: skip
    result = f"{done} {DONE[action]}" + (f", {refused} refused: {why}" if refused else "")
    return show_result("/dead-letters", result)
