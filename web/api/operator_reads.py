"""What operators and viewers read: the status, lists of rows, one record, and files in quarantine."""

import time
from dataclasses import asdict
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Path
from pydantic import create_model
from starlette.requests import Request
from starlette.responses import Response

from db import dead_letters, quarantine
from db.connection import Connection, Row
from db.reports import lists, records
from db.reports.lists import ListKind
from moorage import model, quarantine_links
from moorage.model import DeadLetter, DeliveryState, OutputState, PredictionState
from moorage.text import is_storable
from web.api import operator_views as views
from web.api.operator_views import RecordReportView, StatusView
from web.api.responses import DeadLetterView, View, page_model
from web.http import problems, query
from web.http.permissions import Level
from web.http.problems import Problem
from web.http.query import Filters, LinkQuery
from web.http.router import Router
from web.http.validation import Name, PathId
from web.services.context import AnyCaller, Context, ViewerOnly

router: Final = Router(tags=["operations"], dependencies=[ViewerOnly])
public_router: Final = Router(tags=["dead letters"])
_FILE: Final = {"schema": {"type": "string", "format": "binary"}}
_QUARANTINE_HEADERS: Final = {  # never shown in a browser: the file was refused
    "Content-Type": "application/octet-stream",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@router.get("/status", response_description="the status")
async def get_status(ctx: Context) -> StatusView:
    """Return what is wrong, rows by state, servers, queues, workers and sweeps; at most two seconds old."""
    status = await ctx.status_reader.read()
    return StatusView.model_validate({**status, "problems": [asdict(problem) for problem in status["problems"]]})


class ListQuery(query.PageQuery):
    """Filters of a list, combined by AND. `since` and `until` compare the time of creation or arrival."""

    owner: Name | None = None
    project_id: Name | None = None
    job_id: UUID | None = None
    since: query.Time | None = None
    until: query.Time | None = None


def _add_list(kind: ListKind, noun: str, view: type[View], state: Any, filters: tuple[str, ...]) -> None:
    """Add GET /v1/KIND: a page of rows, with the filters that these rows have beside those of every list."""
    fields: dict[str, Any] = {"state": (state | None, None), **dict.fromkeys(filters, (Name | None, None))}
    title = noun.title().replace(" ", "")
    query_model: Any = create_model(f"{title}Query", __base__=ListQuery, **fields)

    async def list_rows(params: Filters[query_model], ctx: Context) -> Row:
        values = params.model_dump(exclude={"before", "limit"})
        rows = await ctx.database.read(
            lambda conn: lists.list_page(conn, kind, values, ctx.providers, params.before, limit=params.limit + 1)
        )
        page, next_id = query.split_page(rows, params.limit)
        return {kind: [{f"{noun.replace(' ', '_')}_id": row["id"], **row} for row in page], "next": next_id}

    list_rows.__name__ = f"list_{kind}"
    list_rows.__doc__ = f"Return a page of {kind.replace('_', ' ')}, newest first."
    router.get(
        f"/{kind.replace('_', '-')}",
        response_model=page_model(f"{title}Page", **{kind: view}),
        response_description=f"a page of {kind.replace('_', ' ')}",
    )(list_rows)


_add_list("deliveries", "delivery", views.ListedDeliveryView, DeliveryState, ("provider",))
_add_list("predictions", "prediction", views.ListedPredictionView, PredictionState, ("provider", "category"))
_add_list("outputs", "output", views.ListedOutputView, OutputState, ("provider", "category"))
_add_list("dead_letters", "dead letter", views.ListedDeadLetterView, model.DeadLetterState, ("provider", "category"))
_add_list("notifications", "notification", views.ListedNotificationView, model.NotificationState, ("category",))


@router.get("/show/{record}", response_description="the record")
async def show_record(record: Annotated[str, Path(max_length=500)], ctx: Context) -> RecordReportView:
    """Return everything about the record that an id, its first 8 characters or a provider's id names."""
    if not is_storable(record):
        raise problems.not_found("record")
    report = await ctx.database.read(
        lambda conn: records.build_report(conn, record, sorted({*ctx.providers, "direct"}))
    )
    return RecordReportView.model_validate(asdict(report))


@router.get("/dead-letters/{dead_letter_id}", tags=["dead letters"], response_description="the dead letter")
async def get_dead_letter(dead_letter_id: PathId, caller: AnyCaller, ctx: Context) -> DeadLetterView:
    """Return a dead letter; if its file is in quarantine, with a link that is valid for five minutes, for admins."""

    def read(conn: Connection) -> tuple[DeadLetter | None, Row | None]:
        letter = dead_letters.get(conn, dead_letter_id)
        return letter, quarantine.find(conn, letter.subject_id) if letter else None

    letter, file = await ctx.database.transaction(read)
    if letter is None:
        raise problems.not_found("dead letter")
    fields: dict[str, Any] = {"dead_letter_id": letter.id, **asdict(letter), "quarantine": None}
    if file is not None:
        is_admin = caller.level >= Level.ADMIN
        url = quarantine_links.build_link(ctx.settings, letter.subject_id, time.time()) if is_admin else None
        fields["quarantine"] = {**file, "url": url, "url_seconds": quarantine_links.LINK_SECONDS}
    return DeadLetterView.model_validate(fields)


@public_router.get(
    "/assets/quarantine/{output_id}",
    response_class=Response,
    responses={200: {"description": "the file, as an attachment", "content": {"application/octet-stream": _FILE}}},
)
async def get_quarantined_file(request: Request, output_id: PathId, link: Filters[LinkQuery], ctx: Context) -> Response:
    """Download a file from quarantine, by a signed link only."""
    if not quarantine_links.is_valid(ctx.settings, output_id, link.until, link.signature, time.time()):
        raise Problem(403, "the link is invalid or expired: request the dead letter again")
    file = await ctx.database.transaction(lambda conn: quarantine.find(conn, output_id))
    if file is None:
        raise problems.not_found("file")
    headers = {
        **_QUARANTINE_HEADERS,
        "Content-Disposition": f'attachment; filename="{output_id}.bin"',
        "Content-Length": str(file["bytes"]),
    }
    if request.method == "HEAD":
        return Response(headers=headers)
    return await ctx.quarantine_streamer.build_response(file["key"], None, 200, headers)
