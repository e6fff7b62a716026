"""GET /v1/jobs: lists jobs, and returns one with its variants, predictions, outputs, errors and events."""

from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import events, jobs, outputs, predictions, renders
from db.connection import Connection, Row
from web.api.renders import build_variant
from web.http import ids, permissions, problems, query
from web.http.permissions import Caller, Level
from web.services import context
from web.services.context import AppContext

JOB_FIELDS: Final = (
    "state", "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "category", "reason",
    "created_at", "deadline_at", "settled_at", "reopened", "placeholder", "chain",
)  # fmt: skip
PREDICTION_FIELDS: Final = (
    "entry", "provider", "external_id", "model", "state", "raw_status", "created_at", "submitted_at", "deadline_at",
    "ended_at", "cancel_reason",
)  # fmt: skip
OUTPUT_FIELDS: Final = ("idx", "path", "state", "attempt", "run_at", "expires_at", "ended_at")
ERROR_FIELDS: Final = (
    "type", "message", "prediction_id", "retryable", "subject", "subject_id", "idx", "path", "dead_letter_id",
)  # fmt: skip
LIST_FIELDS: Final = (
    "owner", "kind", "state", "project_id", "category", "reason", "created_at", "deadline_at", "settled_at",
    "reopened", "render_id", "outputs", "kept",
)  # fmt: skip
EVENT_FIELDS: Final = ("id", "subject", "subject_id", "from_state", "to_state", "reason", "actor", "at")
_RETRIED_STATES: Final = ("waiting", "discarding", "planned", "submitting", "running")


async def list_jobs(request: Request) -> Response:
    """Return a page of jobs, newest first."""
    params = query.parse_query(request, query.JobQuery)
    owner = permissions.get_caller(request).resolve_owner(params.owner)
    filters = {**params.model_dump(exclude={"limit"}), "owner": owner}
    rows = await context.get_context(request).database.transaction(
        lambda conn: jobs.list_page(conn, filters, params.limit + 1)
    )
    page, next_id = query.split_page(rows, params.limit)
    items = [{"job_id": row["id"], **_select_fields(row, LIST_FIELDS)} for row in page]
    return problems.json_response(200, {"jobs": items, "next": next_id})


async def list_job_events(request: Request) -> Response:
    """Return a page of a job's events, oldest first."""
    job_id = ids.parse_id(request.path_params["job_id"], "job")
    params = query.parse_query(request, query.EventPageQuery)
    caller = permissions.get_caller(request)

    def read_events(conn: Connection) -> list[Row]:
        caller.require_visible(jobs.get_with_render(conn, job_id), "job")
        return events.list_page_by_job(conn, job_id, params.after, params.limit + 1)

    rows = await context.get_context(request).database.transaction(read_events)
    page, next_id = query.split_page(rows, params.limit)
    items = [_select_fields(row, EVENT_FIELDS) for row in page]
    return problems.json_response(200, {"job_id": job_id, "events": items, "next": next_id})


async def get_job(request: Request) -> Response:
    """Return a job with its variants, predictions, outputs and errors."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    job_id = ids.parse_id(request.path_params["job_id"], "job")
    fields = await ctx.database.read(lambda conn: _build_job_response(conn, job_id, ctx, caller))
    return problems.json_response(200, fields)


def _build_job_response(conn: Connection, job_id: UUID, ctx: AppContext, caller: Caller) -> dict[str, Any]:
    job = caller.require_visible(jobs.get_with_render(conn, job_id), "job")
    variants = [build_variant(row, ctx.asset_base) for row in renders.list_variants(conn, job_id)]
    is_published = job["render_id"] is not None and job["deleted_at"] is None
    return {
        "job_id": job_id,
        **_select_fields(job, JOB_FIELDS),
        "policy": job["partial"],
        "variants_asked": job["variants"],
        "render_id": job["render_id"] if is_published else None,
        "published_at": job["published_at"] if is_published else None,
        "variants_created": len(variants),
        "variants": variants,
        "predictions": [
            {"prediction_id": row["id"], **_build_end_reason(row, caller), **_select_fields(row, PREDICTION_FIELDS)}
            for row in predictions.list_by_job(conn, job_id)
        ],
        "outputs": [  # without the source URLs, which may contain the provider's signature
            {"output_id": row["id"], **_build_end_reason(row, caller), **_select_fields(row, OUTPUT_FIELDS)}
            for row in outputs.list_by_job(conn, job_id)
        ],
        "errors": [{"job_id": job_id, **_select_fields(row, ERROR_FIELDS)} for row in jobs.list_errors(conn, job_id)],
    }


def _build_end_reason(row: Row, caller: Caller) -> dict[str, Any]:
    """Return why a row ended. Owners get no reason while it is being retried: it may then name internal servers."""
    is_hidden = row["state"] in _RETRIED_STATES and caller.level < Level.APPLICATION
    return {"type": row["category"], "message": None if is_hidden else row["reason"]}


def _select_fields(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names}
