"""What operators and viewers read: the status, lists of rows, and everything about one record."""

from dataclasses import asdict
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Path, Query

from db.reports import lists, records
from db.reports.lists import ListKind
from moorage.errors import Refused
from moorage.model import DeliveryState, OutputState, PredictionState
from moorage.text import is_storable
from web.api.operator_views import (
    DeadLetterPage,
    DeadLetterState,
    DeliveryPage,
    NotificationPage,
    NotificationState,
    OutputPage,
    PredictionPage,
    RecordReportView,
    StatusView,
)
from web.http import ids, query
from web.http.problems import Problem
from web.http.router import Router
from web.http.validation import Name
from web.services.context import AppContext
from web.services.dependencies import Context, ViewerOnly

router: Final = Router(tags=["operations"], dependencies=[ViewerOnly])


class _ListQuery(query.PageQuery):
    """Filters of a list, combined by AND. `since` and `until` compare the time of creation or arrival."""

    owner: Name | None = None
    project_id: Name | None = None
    job_id: UUID | None = None
    since: query.Time | None = None
    until: query.Time | None = None


class DeliveryQuery(_ListQuery):
    state: DeliveryState | None = None
    provider: Name | None = None


class PredictionQuery(_ListQuery):
    state: PredictionState | None = None
    provider: Name | None = None
    category: Name | None = None


class OutputQuery(_ListQuery):
    state: OutputState | None = None
    provider: Name | None = None
    category: Name | None = None


class DeadLetterQuery(_ListQuery):
    state: DeadLetterState | None = None
    provider: Name | None = None
    category: Name | None = None


class NotificationQuery(_ListQuery):
    state: NotificationState | None = None
    category: Name | None = None


@router.get("/status", response_description="the status")
async def get_status(ctx: Context) -> StatusView:
    """Return what is wrong, rows by state, servers, queues, workers and sweeps; at most two seconds old."""
    status = await ctx.status_reader.read()
    return StatusView.model_validate({**status, "problems": [asdict(problem) for problem in status["problems"]]})


@router.get("/deliveries", response_description="a page of deliveries")
async def list_deliveries(params: Annotated[DeliveryQuery, Query()], ctx: Context) -> DeliveryPage:
    """Return a page of deliveries, newest first."""
    return DeliveryPage.model_validate(await _read_page(ctx, "deliveries", "delivery_id", params))


@router.get("/predictions", response_description="a page of predictions")
async def list_predictions(params: Annotated[PredictionQuery, Query()], ctx: Context) -> PredictionPage:
    """Return a page of predictions, newest first."""
    return PredictionPage.model_validate(await _read_page(ctx, "predictions", "prediction_id", params))


@router.get("/outputs", response_description="a page of outputs")
async def list_outputs(params: Annotated[OutputQuery, Query()], ctx: Context) -> OutputPage:
    """Return a page of outputs, newest first."""
    return OutputPage.model_validate(await _read_page(ctx, "outputs", "output_id", params))


@router.get("/dead-letters", response_description="a page of dead letters")
async def list_dead_letters(params: Annotated[DeadLetterQuery, Query()], ctx: Context) -> DeadLetterPage:
    """Return a page of dead letters, newest first."""
    return DeadLetterPage.model_validate(await _read_page(ctx, "dead_letters", "dead_letter_id", params))


@router.get("/notifications", response_description="a page of notifications")
async def list_notifications(params: Annotated[NotificationQuery, Query()], ctx: Context) -> NotificationPage:
    """Return a page of notifications, newest first."""
    return NotificationPage.model_validate(await _read_page(ctx, "notifications", "notification_id", params))


async def _read_page(ctx: AppContext, kind: ListKind, id_name: str, params: _ListQuery) -> dict[str, Any]:
    filters = params.model_dump(exclude={"before", "limit"})
    rows = await ctx.database.read(
        lambda conn: lists.list_page(conn, kind, filters, before=params.before, limit=params.limit + 1)
    )
    page, next_id = query.split_page(rows, params.limit)
    return {kind: [{id_name: row["id"], **row} for row in page], "next": next_id}


@router.get("/show/{record}", response_description="the record")
async def show_record(record: Annotated[str, Path(max_length=500)], ctx: Context) -> RecordReportView:
    """Return everything about the record that an id, its first 8 characters or a provider's id names."""
    if not is_storable(record):
        raise ids.not_found("record")
    try:
        report = await ctx.database.read(
            lambda conn: records.build_report(conn, record, sorted({*ctx.providers, "direct"}))
        )
    except Refused as error:
        raise Problem(error.status, str(error)) from error
    return RecordReportView.model_validate(asdict(report))
