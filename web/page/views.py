"""The addresses of the page: `/` and what it loads, below `/page/`."""

import mimetypes
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

import jinja2
from pydantic import ConfigDict, field_validator
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from db import renders
from db.connection import Connection, Database, Row
from db.reports import my_renders
from moorage.text import is_storable
from tasks.jobs import cancel, retry
from web.http import ids, permissions, query
from web.http.permissions import NOBODY, Caller
from web.http.problems import Problem
from web.page import cards
from web.page.cards import Card, Shown
from web.services import context
from web.services import database as snapshots
from web.services.authentication import Gate

HOME: Final = "/"
BELOW: Final = "/page/"
ROWS: Final = 24
_FOLDER: Final = Path(__file__).parent
_STATIC: Final = {path.name: path.read_bytes() for path in sorted((_FOLDER / "static").iterdir())}
_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, auto_reload=False,
)  # fmt: skip

# What the page says afterwards, by the word in its address.
TOLD: Final = {
    "cancel": "Cancelled. What its provider still makes is not kept.",
    "retry": "It is tried again.",
    "refused": "That is no longer possible: it has changed since.",
}
ACTOR: Final = "page"


class Wanted(query.Page):
    """What the address of the page may ask for; a form sends empty fields too, and links carry what others added."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    kind: str = ""
    state: Shown | Literal[""] = ""
    style: str = ""
    project_id: str = ""
    told: str = ""

    @field_validator("state", mode="before")
    @classmethod
    def _known(cls, value: str) -> str:
        """Filter nothing by a word that no card shows: a link may be older than the words."""
        return value if value in cards.STATES else ""

    @property
    def filters(self) -> dict[str, str]:
        """Return what filters the list, as it stands in the address."""
        return {"kind": self.kind, "state": self.state, "style": self.style, "project_id": self.project_id}


def is_page(path: str) -> bool:
    """Return whether an address is the page's."""
    return path == HOME or path.startswith(BELOW)


async def admit(gate: Gate, scope: Scope) -> Caller:
    """
    Return who looks at the page: nobody where the cookie is missing or has run out, which the page tells by itself.

    Raises:
        Problem: 403, a foreign page sent the request.
    """
    try:
        return await gate.admit(scope)
    except Problem as refused:
        if refused.status == 403:
            raise
        return NOBODY


async def home(request: Request) -> Response:
    """Answer 200 with the page of the caller's owner, or with what to do where there is no session."""
    at, owner = context.of(request), permissions.of(request).owner
    if owner is None:
        return _html(request, "enter.html", told="", public_url=at.settings.public_url)
    wanted = _wanted(request)

    def work(conn: Connection) -> tuple[list[Card], str, Row]:
        listed, following = _cards(conn, owner, wanted, at.asset_base)
        return listed, following, my_renders.choices(conn, owner)

    listed, following, choices = await at.threads.run(lambda database: snapshots.read(database, work))
    more = cards.query(wanted.filters, before=following) if following else ""
    shown: dict[str, Any] = {"cards": listed, "next": following, "more": more, "query": cards.query(wanted.filters)}
    if request.headers.get("x-fragment") == "cards":
        return _html(request, "cards.html", **shown)
    return _html(
        request,
        "page.html",
        **shown,
        filters=wanted.filters,
        filtered=cards.filtered(wanted.filters),
        kinds=cards.KINDS,
        states=cards.STATES,
        styles=choices["styles"],
        projects=choices["projects"],
        told=TOLD.get(wanted.told, ""),
    )


async def card(request: Request) -> Response:
    """Answer 200 with a job's card, 204 where it is filtered out, 404 where there is none, 401 without a session."""
    at, owner = context.of(request), permissions.of(request).owner
    if owner is None:
        raise Problem(401, "the session is over: open the page with a new link")
    job_id, wanted = ids.read(request.path_params["job_id"], "job"), _wanted(request)

    def work(conn: Connection) -> Card | None:
        row = my_renders.card(conn, owner, job_id, _filters(wanted))
        if row is None and my_renders.card(conn, owner, job_id) is None:
            raise ids.missing("job")
        return cards.card(row, renders.variants(conn, job_id), at.asset_base) if row else None

    found = await at.threads.run(lambda database: snapshots.read(database, work))
    if found is None:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return _html(request, "card.html", card=found, query=cards.query(wanted.filters))


async def act(request: Request) -> Response:
    """Cancel a job or try it again, then answer 303 to the page, which says what came of it."""
    owner = permissions.of(request).owner
    if owner is None:
        return RedirectResponse(HOME, 303)
    job_id = ids.read(request.path_params["job_id"], "job")
    filters = _wanted(request).filters  # those of the page that sent it
    told = await carry_out(request, owner, job_id, request.path_params["what"])
    return RedirectResponse(f"{HOME}?{cards.query(filters, told=told)}", 303, {"Cache-Control": "no-store"})


async def static(request: Request) -> Response:
    """Answer 200 with a file of the page."""
    name = request.path_params["name"]
    if name not in _STATIC:
        raise Problem(404, "there is no such file")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(_STATIC[name], media_type=kind, headers={"Cache-Control": "no-cache", **_SAFE})


# Nothing is told to other sites. With `no-referrer` browsers send `Origin: null` with the page's own forms, a 403.
_SAFE: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}

ROUTES: Final = [
    Route(HOME, home),
    Route(f"{BELOW}jobs/{{job_id}}", card),
    Route(f"{BELOW}jobs/{{job_id}}/{{what}}", act, methods=["POST"]),
    Route(f"{BELOW}{{name}}", static),
]


def _wanted(request: Request) -> Wanted:
    given = {name: value for name, value in request.query_params.items() if value}
    if not all(is_storable(value) for value in given.values()):
        raise Problem(404, "there is no such page of renders")
    try:
        return Wanted.model_validate(given)
    except ValueError as error:
        raise Problem(404, "there is no such page of renders") from error


def _filters(wanted: Wanted) -> dict[str, Any]:
    return {
        "kind": wanted.kind or None,
        "states": list(cards.STATES[wanted.state]) if wanted.state else None,
        "shown": wanted.state or None,
        "style": wanted.style or None,
        "project_id": wanted.project_id or None,
    }


def _cards(conn: Connection, owner: str, wanted: Wanted, base: str) -> tuple[list[Card], str]:
    """Return a page of cards and the id to go on from, empty at the end."""
    rows = my_renders.page(conn, owner, _filters(wanted), wanted.before, ROWS + 1)
    page = rows[:ROWS]
    files: dict[Any, list[Row]] = {row["id"]: [] for row in page}
    for found in renders.variants_of(conn, list(files)):
        files[found["render_id"]].append(found)
    following = str(page[-1]["id"]) if len(rows) > ROWS else ""
    return [cards.card(row, files[row["id"]], base) for row in page], following


def _html(request: Request, template: str, **shown: Any) -> Response:
    body = _TEMPLATES.get_template(template).render(**shown)
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": _policy(context.of(request).asset_base), **_SAFE}
    return Response(body, media_type="text/html", headers=headers)


def _policy(asset_base: str) -> str:
    """Return what the page may load: its own files, and pictures and videos from where they are kept."""
    parts = urlsplit(asset_base)
    files = f"'self' {parts.scheme}://{parts.netloc}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src {files};"
        f" media-src {files}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


async def carry_out(request: Request, owner: str, job_id: UUID, what: str) -> str:
    """
    Cancel an owner's job, or try it again; returns the word for what came of it.

    Raises:
        Problem: 404, there is no such job of this owner, or no such thing to do about it.
    """
    if what not in ("cancel", "retry"):
        raise ids.missing("address")
    at = context.of(request)
    act = cancel.cancel if what == "cancel" else retry.retry

    def work(database: Database) -> str:
        if database.run(lambda conn: my_renders.card(conn, owner, job_id)) is None:
            raise ids.missing("job")
        outcome = act(database, at.settings, job_id, ACTOR)
        at.relay.offer(*outcome.wakes)
        return "refused" if outcome.refused else what

    return await at.threads.run(work)
