"""What operators and viewers read: the status, lists of rows, and everything about one record."""

from dataclasses import asdict
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Path, Query
from pydantic import create_model

from db.connection import Row
from db.reports import lists, records
from db.reports.lists import ListKind
from moorage.model import DeliveryState, OutputState, PredictionState
from moorage.text import is_storable
from web.api import operator_views as views
from web.api.operator_views import RecordReportView, StatusView
from web.api.responses import View, page_model
from web.http import ids, query
from web.http.router import Router
from web.http.validation import Name
from web.services.dependencies import Context, ViewerOnly

router: Final = Router(tags=["operations"], dependencies=[ViewerOnly])


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
    model: Any = create_model(f"{title}Query", __base__=ListQuery, **fields)

    async def list_rows(params: Annotated[model, Query()], ctx: Context) -> Row:
        values = params.model_dump(exclude={"before", "limit"})
        rows = await ctx.database.read(
            lambda conn: lists.list_page(conn, kind, values, before=params.before, limit=params.limit + 1)
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
_add_list("dead_letters", "dead letter", views.ListedDeadLetterView, views.DeadLetterState, ("provider", "category"))
_add_list("notifications", "notification", views.ListedNotificationView, views.NotificationState, ("category",))


@router.get("/show/{record}", response_description="the record")
async def show_record(record: Annotated[str, Path(max_length=500)], ctx: Context) -> RecordReportView:
    """Return everything about the record that an id, its first 8 characters or a provider's id names."""
    if not is_storable(record):
        raise ids.not_found("record")
    report = await ctx.database.read(
        lambda conn: records.build_report(conn, record, sorted({*ctx.providers, "direct"}))
    )
    return RecordReportView.model_validate(asdict(report))
