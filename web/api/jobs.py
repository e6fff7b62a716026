"""GET /v1/jobs: how jobs stand, what was published of one, what went wrong in it, and its history."""

from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import events, jobs, outputs, predictions, renders
from db.connection import Connection, Row
from web.api import renders as variants
from web.http import ids, permissions, problems, query
from web.http.permissions import Caller, Level
from web.services import context
from web.services import database as snapshots

JOB_FIELDS = (
    "state", "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "category", "reason",
    "created_at", "deadline_at", "settled_at", "reopened", "placeholder", "chain",
)  # fmt: skip
PREDICTION_FIELDS = (
    "entry", "provider", "external_id", "model", "state", "raw_status", "created_at", "submitted_at", "deadline_at",
    "ended_at", "cancel_reason",
)  # fmt: skip
OUTPUT_FIELDS = ("idx", "path", "state", "attempt", "run_at", "expires_at", "ended_at")
ERROR_FIELDS = (
    "type",
    "message",
    "prediction_id",
    "retryable",
    "subject",
    "subject_id",
    "idx",
    "path",
    "dead_letter_id",
)


LIST_FIELDS = (
    "owner",
    "kind",
    "state",
    "project_id",
    "category",
    "reason",
    "created_at",
    "deadline_at",
    "settled_at",
    "reopened",
)
EVENT_FIELDS = ("id", "subject", "subject_id", "from_state", "to_state", "reason", "actor", "at")


async def list_jobs(request: Request) -> Response:
    """Answer 200 with a page of jobs, newest first."""
    wanted = query.parse_query(request, query.JobQuery)
    filters = {
        **wanted.model_dump(exclude={"limit"}),
        "owner": permissions.get_caller(request).resolve_owner(wanted.owner),
    }
    rows = await context.get_context(request).database.run(
        lambda database: database.run(lambda conn: jobs.list_page(conn, filters, wanted.limit + 1))
    )
    page = rows[: wanted.limit]
    last = page[-1]["id"] if len(rows) > wanted.limit else None
    return problems.json_response(200, {"jobs": [_build_list_item(row) for row in page], "next": last})


def _build_list_item(row: Row) -> dict[str, Any]:
    named = {"job_id": row["id"], **_select_fields(row, LIST_FIELDS)}
    return {**named, "render_id": row["render_id"], "outputs": row["outputs"], "kept": row["kept"]}


async def list_job_events(request: Request) -> Response:
    """Answer 200 with a page of a job's events, oldest first, 404 when there is no such job."""
    job_id = ids.parse_id(request.path_params["job_id"], "job")
    wanted = query.parse_query(request, query.EventPageQuery)
    caller = permissions.get_caller(request)

    def work(conn: Connection) -> list[Row] | None:
        row = jobs.get_with_render(conn, job_id)
        if row is None or not caller.can_see(row["owner"]):
            return None
        return events.list_page_by_job(conn, job_id, wanted.after, wanted.limit + 1)

    rows = await context.get_context(request).database.run(lambda database: database.run(work))
    if rows is None:
        raise ids.not_found("job")
    page = rows[: wanted.limit]
    last = page[-1]["id"] if len(rows) > wanted.limit else None
    return problems.json_response(
        200, {"job_id": job_id, "events": [_select_fields(row, EVENT_FIELDS) for row in page], "next": last}
    )


async def get_job(request: Request) -> Response:
    """Answer 200 with a job as it stands, 404 when there is none."""
    at = context.get_context(request)
    job_id = ids.parse_id(request.path_params["job_id"], "job")
    caller = permissions.get_caller(request)
    fields = await at.database.run(
        lambda database: snapshots.read(database, lambda conn: _build_job_response(conn, job_id, at, caller))
    )
    if fields is None:
        raise ids.not_found("job")
    return problems.json_response(200, fields)


def _build_job_response(
    conn: Connection, job_id: UUID, at: context.AppContext, caller: Caller
) -> dict[str, Any] | None:
    row = jobs.get_with_render(conn, job_id)
    if row is None or not caller.can_see(row["owner"]):
        return None
    published = [variants.build_variant(found, at.asset_base) for found in renders.list_variants(conn, job_id)]
    is_published = row["render_id"] is not None and row["deleted_at"] is None
    return {
        "job_id": job_id,
        **_select_fields(row, JOB_FIELDS),
        "policy": row["partial"],
        "variants_asked": row["variants"],
        "render_id": row["render_id"] if is_published else None,
        "published_at": row["published_at"] if is_published else None,
        "variants_created": len(published),
        "variants": published,
        "predictions": [_build_prediction(found, caller) for found in predictions.list_by_job(conn, job_id)],
        "outputs": [_build_output(found, caller) for found in outputs.list_by_job(conn, job_id)],
        "errors": [
            {"job_id": job_id, **_select_fields(found, ERROR_FIELDS)} for found in jobs.list_errors(conn, job_id)
        ],
    }


def _build_prediction(row: Row, caller: Caller) -> dict[str, Any]:
    named = {"prediction_id": row["id"], "type": row["category"], "message": _visible_reason(row, caller)}
    return {**named, **_select_fields(row, PREDICTION_FIELDS)}


def _build_output(row: Row, caller: Caller) -> dict[str, Any]:
    """Return an output without its source: the address may carry the provider's signature."""
    named = {"output_id": row["id"], "type": row["category"], "message": _visible_reason(row, caller)}
    return {**named, **_select_fields(row, OUTPUT_FIELDS)}


def _visible_reason(row: Row, caller: Caller) -> str | None:
    """Return why a row is as it is; why it is tried again names servers of ours, and is no owner's business."""
    is_trying = row["state"] in ("waiting", "discarding", "planned", "submitting", "running")
    return None if is_trying and caller.level < Level.APPLICATION else row["reason"]


def _select_fields(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names}
