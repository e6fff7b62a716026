"""Pauses, recovery from a provider's list, and notifications sent again."""

import importlib
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from db.connection import current_time
from providers.base import Provider
from tasks import pauses
from tasks.jobs import replay
from web.console.session import Admin, Form, Operator, parse_form, render, show_result
from web.http import query
from web.http.problems import Problem
from web.http.validation import PathId
from web.page import views
from web.services.context import Context
from web.services.worker_access import run_with_deps

if TYPE_CHECKING:  # they load what a worker needs
    from tasks.step import Deps

router: Final = APIRouter(include_in_schema=False, redirect_slashes=False, prefix=views.CONSOLE)
OWNER: Final = "recovered"
MATCHES: Final[dict[str, str]] = {
    "unknown": "not registered: to be registered and polled",
    "live": "registered, not ended: to be polled now",
    "ended": "registered and ended: nothing to do",
    "lost": "registered and lost: replay their dead letters",
    "foreign": "with a webhook outside PUBLIC_URL: ignored (moorage recover --all includes them)",
}


class TargetQuery(query.BaseQuery):
    model_config = query.IGNORE_UNKNOWN

    target: str = ""


class RecoverQuery(query.BaseQuery):
    model_config = query.IGNORE_UNKNOWN

    provider: str = ""
    hours: int = Field(0, ge=0, le=720)  # 0: no dry run yet


@router.get("/pauses")
async def get_pauses(request: Request, caller: Operator, ctx: Context) -> Response:
    """Show what is paused, and the form to pause a provider or all downloads."""
    chosen, targets = views.parse_query(request, TargetQuery).target, pauses.list_targets(ctx.providers)
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
    params, overview = views.parse_query(request, RecoverQuery), None
    if params.provider in ctx.providers and params.hours:
        overview = await run_with_deps(ctx.settings, partial(_build_overview, name=params.provider, hours=params.hours))
    names = sorted(
        name
        for name, provider in ctx.providers.items()
        if provider.can_poll
        and type(provider).list_predictions is not Provider.list_predictions  # the others have none
    )
    return await render(
        request, ctx, caller, "recover.html", title="Recover", providers=names, chosen=params.provider,
        chosen_hours=params.hours or 2, overview=overview, texts=MATCHES,
    )  # fmt: skip


@router.post("/recover")
async def post_recover(form: Form, caller: Admin, ctx: Context) -> Response:
    """Read the provider's list again, register and poll."""
    params = parse_form(form, RecoverQuery)
    if params.provider not in ctx.providers:
        raise Problem(422, "choose a provider in the form")

    def register(deps: "Deps") -> Any:
        pages, recover = _scan(deps, params.provider, params.hours)
        send = importlib.import_module("worker.publish").publish_wakes
        return recover.register_pages(
            deps, deps.providers[params.provider], pages, owner=OWNER, actor=caller.actor, send_wakes=send
        )

    result = await run_with_deps(ctx.settings, register)
    return show_result("/recover", f"{result['registered']} registered, {result['polled']} are polled now.")


def _scan(deps: "Deps", name: str, hours: int) -> Any:
    """Return the pages of a provider's list, and the module that reads them."""
    recover: Any = importlib.import_module("tasks.predictions.recover")
    since = deps.database.run(current_time) - timedelta(hours=hours)
    return recover.scan(deps, deps.providers[name], since, include_foreign=False), recover


def _build_overview(deps: "Deps", name: str, hours: int) -> Any:
    pages, recover = _scan(deps, name, hours)
    return recover.build_overview(pages, 0)
