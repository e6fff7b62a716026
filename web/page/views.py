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
from web.http.permissions import ANONYMOUS, Caller
from web.http.problems import Problem
from web.page import cards
from web.page.cards import Card, CardState
from web.services import context
from web.services import database as snapshots
from web.services.authentication import Authenticator

HOME: Final = "/"
PAGE_PREFIX: Final = "/page/"
CARDS_PER_PAGE: Final = 24
_FOLDER: Final = Path(__file__).parent
_STATIC: Final = {path.name: path.read_bytes() for path in sorted((_FOLDER / "static").iterdir())}
_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, auto_reload=False,
)  # fmt: skip

# What the page says afterwards, by the word in its address.
ACTION_MESSAGES: Final = {
    "cancel": "Cancelled. What its provider still makes is not kept.",
    "retry": "It is tried again.",
    "refused": "That is no longer possible: it has changed since.",
}
ACTOR: Final = "page"


class CardQuery(query.PageQuery):
    """What the address of the page may ask for; a form sends empty fields too, and links carry what others added."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    kind: str = ""
    state: CardState | Literal[""] = ""
    style: str = ""
    project_id: str = ""
    told: str = ""

    @field_validator("state", mode="before")
    @classmethod
    def _known(cls, value: str) -> str:
        """Filter nothing by a word that no card shows: a link may be older than the words."""
        return value if value in cards.JOB_STATES else ""

    @property
    def filters(self) -> dict[str, str]:
        """Return what filters the list, as it stands in the address."""
        return {"kind": self.kind, "state": self.state, "style": self.style, "project_id": self.project_id}


def is_page_path(path: str) -> bool:
    """Return whether an address is the page's."""
    return path == HOME or path.startswith(PAGE_PREFIX)


async def authenticate_viewer(authenticator: Authenticator, scope: Scope) -> Caller:
    """
    Return who looks at the page: nobody where the cookie is missing or has run out, which the page tells by itself.

    Raises:
        Problem: 403, a foreign page sent the request.
    """
    try:
        return await authenticator.authenticate(scope)
    except Problem as refused:
        if refused.status == 403:
            raise
        return ANONYMOUS


async def get_page(request: Request) -> Response:
    """Answer 200 with the page of the caller's owner, or with what to do where there is no session."""
    at, owner = context.get_context(request), permissions.get_caller(request).owner
    if owner is None:
        return _html_response(request, "enter.html", told="", public_url=at.settings.public_url)
    wanted = _parse_card_query(request)

    def work(conn: Connection) -> tuple[list[Card], str, Row]:
        listed, following = _list_cards(conn, owner, wanted, at.asset_base)
        return listed, following, my_renders.list_filter_choices(conn, owner)

    listed, following, choices = await at.database.run(lambda database: snapshots.read(database, work))
    more = cards.encode_filters(wanted.filters, before=following) if following else ""
    shown: dict[str, Any] = {
        "cards": listed,
        "next": following,
        "more": more,
        "query": cards.encode_filters(wanted.filters),
    }
    if request.headers.get("x-fragment") == "cards":
        return _html_response(request, "cards.html", **shown)
    return _html_response(
        request,
        "page.html",
        **shown,
        filters=wanted.filters,
        filtered=cards.summarize_filters(wanted.filters),
        kinds=cards.KINDS,
        states=cards.JOB_STATES,
        styles=choices["styles"],
        projects=choices["projects"],
        told=ACTION_MESSAGES.get(wanted.told, ""),
    )


async def get_card(request: Request) -> Response:
    """Answer 200 with a job's card, 204 where it is filtered out, 404 where there is none, 401 without a session."""
    at, owner = context.get_context(request), permissions.get_caller(request).owner
    if owner is None:
        raise Problem(401, "the session is over: open the page with a new link")
    job_id, wanted = ids.parse_id(request.path_params["job_id"], "job"), _parse_card_query(request)

    def work(conn: Connection) -> Card | None:
        row = my_renders.get_card(conn, owner, job_id, _filter_values(wanted))
        if row is None and my_renders.get_card(conn, owner, job_id) is None:
            raise ids.not_found("job")
        return cards.build_card(row, renders.list_variants(conn, job_id), at.asset_base) if row else None

    found = await at.database.run(lambda database: snapshots.read(database, work))
    if found is None:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    return _html_response(request, "card.html", card=found, query=cards.encode_filters(wanted.filters))


async def post_action(request: Request) -> Response:
    """Cancel a job or try it again, then answer 303 to the page, which says what came of it."""
    owner = permissions.get_caller(request).owner
    if owner is None:
        return RedirectResponse(HOME, 303)
    job_id = ids.parse_id(request.path_params["job_id"], "job")
    filters = _parse_card_query(request).filters  # those of the page that sent it
    told = await apply_action(request, owner, job_id, request.path_params["what"])
    return RedirectResponse(f"{HOME}?{cards.encode_filters(filters, told=told)}", 303, {"Cache-Control": "no-store"})


async def get_static_file(request: Request) -> Response:
    """Answer 200 with a file of the page."""
    name = request.path_params["name"]
    if name not in _STATIC:
        raise Problem(404, "there is no such file")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(_STATIC[name], media_type=kind, headers={"Cache-Control": "no-cache", **_SECURITY_HEADERS})


# Nothing is told to other sites. With `no-referrer` browsers send `Origin: null` with the page's own forms, a 403.
_SECURITY_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}

ROUTES: Final = [
    Route(HOME, get_page),
    Route(f"{PAGE_PREFIX}jobs/{{job_id}}", get_card),
    Route(f"{PAGE_PREFIX}jobs/{{job_id}}/{{what}}", post_action, methods=["POST"]),
    Route(f"{PAGE_PREFIX}{{name}}", get_static_file),
]


def _parse_card_query(request: Request) -> CardQuery:
    given = {name: value for name, value in request.query_params.items() if value}
    if not all(is_storable(value) for value in given.values()):
        raise Problem(404, "there is no such page of renders")
    try:
        return CardQuery.model_validate(given)
    except ValueError as error:
        raise Problem(404, "there is no such page of renders") from error


def _filter_values(wanted: CardQuery) -> dict[str, Any]:
    return {
        "kind": wanted.kind or None,
        "states": list(cards.JOB_STATES[wanted.state]) if wanted.state else None,
        "shown": wanted.state or None,
        "style": wanted.style or None,
        "project_id": wanted.project_id or None,
    }


def _list_cards(conn: Connection, owner: str, wanted: CardQuery, base: str) -> tuple[list[Card], str]:
    """Return a page of cards and the id to go on from, empty at the end."""
    rows = my_renders.list_cards(conn, owner, _filter_values(wanted), wanted.before, CARDS_PER_PAGE + 1)
    page = rows[:CARDS_PER_PAGE]
    files: dict[Any, list[Row]] = {row["id"]: [] for row in page}
    for found in renders.list_variants_of_renders(conn, list(files)):
        files[found["render_id"]].append(found)
    following = str(page[-1]["id"]) if len(rows) > CARDS_PER_PAGE else ""
    return [cards.build_card(row, files[row["id"]], base) for row in page], following


def _html_response(request: Request, template: str, **shown: Any) -> Response:
    body = _TEMPLATES.get_template(template).render(**shown)
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": _content_security_policy(context.get_context(request).asset_base),
        **_SECURITY_HEADERS,
    }
    return Response(body, media_type="text/html", headers=headers)


def _content_security_policy(asset_base: str) -> str:
    """Return what the page may load: its own files, and pictures and videos from where they are kept."""
    parts = urlsplit(asset_base)
    files = f"'self' {parts.scheme}://{parts.netloc}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src {files};"
        f" media-src {files}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


async def apply_action(request: Request, owner: str, job_id: UUID, action: str) -> str:
    """
    Cancel an owner's job, or try it again; returns the word for what came of it.

    Raises:
        Problem: 404, there is no such job of this owner, or no such thing to do about it.
    """
    if action not in ("cancel", "retry"):
        raise ids.not_found("address")
    at = context.get_context(request)
    act = cancel.cancel_job if action == "cancel" else retry.retry_job

    def work(database: Database) -> str:
        if database.run(lambda conn: my_renders.get_card(conn, owner, job_id)) is None:
            raise ids.not_found("job")
        outcome = act(database, at.settings, job_id, ACTOR)
        at.relay.enqueue(*outcome.wakes)
        return "refused" if outcome.refused else action

    return await at.database.run(work)
