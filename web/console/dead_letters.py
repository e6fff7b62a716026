"""Dead letters by cause; a plan, then an action page by page, so that each request is short."""

from datetime import datetime
from functools import partial
from typing import Any, Final, get_args
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from db import dead_letters
from db.connection import Connection, Row, current_time
from db.dead_letters import DeadLetterFilter
from moorage.errors import Category
from tasks.dead_letters import Action, apply_page
from web.console.session import Admin, Form, Operator, get_actor, parse_query, render, show_result
from web.http import query
from web.http.problems import Problem
from web.page import views
from web.services.dependencies import Context

router: Final = APIRouter(include_in_schema=False, redirect_slashes=False, prefix=f"{views.CONSOLE}/dead-letters")
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


@router.get("")
async def get_dead_letters(request: Request, caller: Operator, ctx: Context) -> Response:
    """Show open dead letters grouped by cause, and the newest ones to select from."""
    filters = parse_query(request, DeadLetterQuery).filters
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


@router.post("/plan")
async def plan_action(request: Request, form: Form, caller: Admin, ctx: Context) -> Response:
    """Show what an action would apply to, before it is confirmed. A later dead letter is not part of it."""
    action, _, scope = form.get("plan", [""])[0].partition("-")
    if action not in get_args(Action):
        raise Problem(422, "choose an action in the list")
    criteria = _parse_criteria(form, by_id=scope == "selected")

    def read(conn: Connection) -> tuple[list[Row], Row, datetime]:
        groups = dead_letters.count_groups(conn, criteria)
        return groups, dead_letters.count_expiring(conn, criteria), current_time(conn)

    groups, counts, now = await ctx.database.read(read)
    fields = {**form, "until": [now.isoformat()], "total": [str(counts["matched"])], "id": form.get("id", [])}
    if scope != "selected":
        del fields["id"]
    return await render(
        request, ctx, caller, "dead_plan.html", title=f"{action.capitalize()} dead letters", action=action,
        groups=groups, counts=counts, fields=_list_fields(fields),
    )  # fmt: skip


@router.post("/{action}")
async def apply_action(request: Request, action: Action, form: Form, caller: Admin, ctx: Context) -> Response:
    """Apply a confirmed action to the next rows of its plan; show how far it is, or redirect to the list."""
    criteria, after = _parse_criteria(form, by_id="id" in form), _parse_uuid(form.get("after", [str(UUID(int=0))])[0])
    note = form.get("note", [""])[0].strip()
    apply = partial(apply_page, criteria=criteria, action=action, actor=get_actor(caller), after=after, note=note)
    page = await ctx.database.run(partial(apply, limit=PER_REQUEST, seconds=PAGE_SECONDS))
    ctx.relay.enqueue(*page.wakes)
    done, refused = (_parse_count(form, name) + n for name, n in (("done", page.done), ("refused", len(page.refused))))
    why = page.refused[0]["reason"] if page.refused else form.get("why", [""])[0]
    if page.remaining:
        state = {"after": [str(page.after)], "done": [str(done)], "refused": [str(refused)], "why": [why]}
        return await render(
            request, ctx, caller, "dead_progress.html", title=f"{action.capitalize()} dead letters", action=action,
            verb=DONE[action], done=done, refused=refused, total=_parse_count(form, "total"),
            fields=_list_fields({**form, **state}),
        )  # fmt: skip
    result = f"{done} {DONE[action]}" + (f", {refused} refused: {why}" if refused else "")
    return show_result("/dead-letters", result)


def _parse_criteria(form: dict[str, list[str]], *, by_id: bool) -> DeadLetterFilter:
    """Return what a form selects: some by id, or all that match filters and were open at the time of the plan."""
    try:
        until = datetime.fromisoformat(form["until"][0]) if "until" in form else None
    except ValueError as error:
        raise _invalid_form() from error
    filters: dict[str, Any] = {name: form[name][0] for name in FILTERS if name in form}
    ids = [_parse_uuid(text) for text in form.get("id", ())] if by_id else None
    return DeadLetterFilter(**({} if by_id else filters), until=until, ids=ids)


def _list_fields(form: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return the hidden fields of the next form."""
    return [(name, value) for name, values in form.items() if name not in ("plan",) for value in values]


def _parse_uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise _invalid_form() from error


def _parse_count(form: dict[str, list[str]], name: str) -> int:
    text = form.get(name, ["0"])[0]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _invalid_form() -> Problem:
    return Problem(422, "the form is invalid: open the list again")
