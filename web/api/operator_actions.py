"""What operators do: dead letters, pauses, recovery from a provider's list, notifications sent again."""

import importlib
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field
from starlette.responses import Response

from db import dead_letters, pauses
from db.dead_letters import FIRST, DeadLetterFilter
from moorage import logs
from moorage.errors import Refused
from tasks import bulk_dead_letters as bulk
from tasks import pauses as pausing
from tasks.bulk_dead_letters import Action, BulkResult
from tasks.jobs import replay
from web.api.operator_views import BulkView, PauseView, RecoveryView, ResentView, ResumedView
from web.http import query
from web.http.json_body import Json
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.router import Router
from web.http.validation import Body, Name, PathId, RowId, invalid_field
from web.services.context import AdminOnly, AnyCaller, AppContext, Context
from web.services.worker_access import run_with_deps

if TYPE_CHECKING:
    from tasks.step import Deps

log = logs.get_logger(__name__)

router: Final = Router(tags=["operations"], dependencies=[AdminOnly])

PAGE_SECONDS: Final = 3.0  # of one call on dead letters; the caller repeats it with `next`


class DeadLetterFilterBody(Body):
    """Criteria of open dead letters, combined by AND; without any, all match."""

    provider: Name | None = None
    step: Name | None = None
    category: Name | None = None
    error: Name | None = None
    retryable: bool | None = None
    job_id: RowId | None = None
    owner: Name | None = None
    project_id: Name | None = None
    since: query.Time | None = None
    until: query.Time | None = None


class DeadLettersBody(Body):
    """Dead letters by id, or those that match a filter; `after` is `next` of the call before."""

    ids: Annotated[list[RowId], Field(min_length=1, max_length=bulk.MAX_ROWS)] | None = None
    filter: DeadLetterFilterBody | None = None
    dry_run: bool = False
    after: RowId | None = None

    def build_filter(self) -> DeadLetterFilter:
        """Return the filter. Raises Problem: 422 unless exactly one of ids and filter is given."""
        if (self.ids is None) == (self.filter is None):
            raise invalid_field("", "exactly one of `ids` and `filter` is required")
        return DeadLetterFilter(ids=self.ids, **(self.filter.model_dump() if self.filter else {}))


class AcknowledgeBody(DeadLettersBody):
    """Dead letters as for a replay, and a note about them."""

    note: Name


class PauseCreate(Body):
    """A provider, or `keep` for all downloads, and why it is paused."""

    target: Name
    reason: Annotated[Name | None, Field(max_length=200)] = None


class RecoveryCreate(Body):
    """The provider whose list is read, how far back, and for whom unknown predictions are registered."""

    provider: Name
    seconds: Annotated[int, Field(ge=1, le=30 * 86400)] = 7200
    owner: Name = "recovered"
    include_foreign: bool = False  # predictions whose webhook is not below PUBLIC_URL
    dry_run: bool = True


@router.post("/dead-letters/replay", response_description="what was done, and what remains")
async def replay_dead_letters(ctx: Context, caller: AnyCaller, body: Json[DeadLettersBody]) -> BulkView:
    """Replay dead letters, at most 500 in a call."""
    return await _apply_to_dead_letters(ctx, caller, body, "replay")


@router.post("/dead-letters/discard", response_description="what was done, and what remains")
async def discard_dead_letters(ctx: Context, caller: AnyCaller, body: Json[DeadLettersBody]) -> BulkView:
    """Discard dead letters, at most 500 in a call."""
    return await _apply_to_dead_letters(ctx, caller, body, "discard")


@router.post("/dead-letters/acknowledge", response_description="what was done, and what remains")
async def acknowledge_dead_letters(ctx: Context, caller: AnyCaller, body: Json[AcknowledgeBody]) -> BulkView:
    """Note that dead letters are known, at most 500 in a call; they stay open and are no problem any more."""
    return await _apply_to_dead_letters(ctx, caller, body, "acknowledge", body.note)


async def _apply_to_dead_letters(
    ctx: AppContext, caller: Caller, body: DeadLettersBody, action: Action, note: str = ""
) -> BulkView:
    criteria, after = body.build_filter(), body.after or FIRST
    plan = await ctx.database.read(lambda conn: dead_letters.count_expiring(conn, criteria, after))
    result = BulkResult(0, [], [], after, plan["matched"])
    if not body.dry_run:
        result = await ctx.run_and_wake(
            lambda database: bulk.apply_to_page(
                database, criteria, action, caller.actor, after=after, note=note, seconds=PAGE_SECONDS
            )
        )
        log.info("dead_letters.closed", action=action, done=result.done, refused=len(result.refused), by=caller.actor)
    refused = [{"dead_letter_id": item["id"], "reason": item["reason"]} for item in result.refused]
    next_id = result.after if result.remaining and not body.dry_run else None
    fields = {**plan, "dry_run": body.dry_run, "done": result.done, "refused": refused}
    return BulkView.model_validate({**fields, "remaining": result.remaining, "next": next_id})


@router.post(
    "/pauses",
    status_code=201,
    response_description="paused",
    responses={200: {"description": "was paused already, unchanged", "model": PauseView}},
)
async def create_pause(response: Response, ctx: Context, caller: AnyCaller, body: Json[PauseCreate]) -> PauseView:
    """Pause a provider (no polls, submissions or downloads) or `keep` (no downloads at all)."""
    pause = partial(pausing.pause, providers=ctx.providers, target=body.target, actor=caller.actor, reason=body.reason)
    if await ctx.database.run(pause) is None:
        response.status_code = 200
    rows = await ctx.database.read(pauses.list_pauses)
    row = next((row for row in rows if row["target"] == body.target), None)
    if row is None:
        raise Problem(409, f"{body.target} was resumed meanwhile: retry")
    return PauseView.model_validate(row)


@router.delete("/pauses/{target}", response_description="resumed")
async def delete_pause(target: str, ctx: Context, caller: AnyCaller) -> ResumedView:
    """End a pause; waiting rows are due at once."""
    resume = partial(pausing.resume, providers=ctx.providers, target=target, actor=caller.actor)
    try:
        since, due = await ctx.database.run(resume)
    except Refused as error:  # no such target
        raise Problem(404, str(error)) from error
    if since is None:
        raise Problem(404, f"{target} is not paused")
    return ResumedView.model_validate({"target": target, "paused_at": since, **due})


@router.post("/notifications/{notification_id}/resend", status_code=202, response_description="to be sent again")
async def resend_notification(notification_id: PathId, ctx: Context, caller: AnyCaller) -> ResentView:
    """Send a notification again, whether it was sent or given up."""
    resend = partial(replay.resend_notification, notification_id=notification_id, actor=caller.actor)
    ctx.relay.enqueue(await ctx.database.transaction(resend))
    return ResentView(notification_id=notification_id, state="waiting")


@router.post("/recoveries", response_description="what the provider lists, and what was done")
async def create_recovery(ctx: Context, caller: AnyCaller, body: Json[RecoveryCreate]) -> RecoveryView:
    """Register a provider's predictions that are unknown, and poll them and those awaited; a dry run first."""
    provider = ctx.get_provider(body.provider).name
    return await run_with_deps(ctx.settings, partial(_recover, provider=provider, actor=caller.actor, body=body))


def _recover(deps: "Deps", provider: str, actor: str, body: RecoveryCreate) -> RecoveryView:
    recover: Any = importlib.import_module("tasks.predictions.recover")
    pages = recover.TimedScan(deps, provider, body.seconds, include_foreign=body.include_foreign)
    overview = recover.RecoveryOverview()
    counted = overview.count(pages)
    to_register = ([] for _ in counted) if body.dry_run else counted
    result = recover.register_pages(
        deps, deps.providers[provider], to_register, owner=body.owner, actor=actor,
        send_wakes=importlib.import_module("worker.publish").publish_wakes,
    )  # fmt: skip
    names = ("external_id", "raw_status", "model")  # not the webhook's URL, which contains a key
    first = [{"match": item.match, **{name: getattr(item.listed, name) for name in names}} for item in overview.first]
    found = {match: overview.counts[match] for match in recover.MATCHES}
    fields = {"provider": provider, "since": pages.since, "dry_run": body.dry_run, "found": found, "first": first}
    return RecoveryView.model_validate({**fields, **result, "is_complete": pages.is_complete})
