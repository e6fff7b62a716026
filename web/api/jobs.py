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

JOB = (
    "state", "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "category", "reason",
    "created_at", "deadline_at", "settled_at", "reopened", "placeholder", "chain",
)  # fmt: skip
PREDICTION = (
    "entry", "provider", "external_id", "model", "state", "raw_status", "created_at", "submitted_at", "deadline_at",
    "ended_at", "cancel_reason",
)  # fmt: skip
OUTPUT = ("idx", "path", "state", "attempt", "run_at", "expires_at", "ended_at")
ERROR = ("type", "message", "prediction_id", "retryable", "subject", "subject_id", "idx", "path", "dead_letter_id")


LISTED = (
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
EVENT = ("id", "subject", "subject_id", "from_state", "to_state", "reason", "actor", "at")


async def index(request: Request) -> Response:
    """Answer 200 with a page of jobs, newest first."""
    wanted = query.read(request, query.Jobs)
    filters = {**wanted.model_dump(exclude={"limit"}), "owner": permissions.of(request).whose(wanted.owner)}
    rows = await context.of(request).threads.run(
        lambda database: database.run(lambda conn: jobs.page(conn, filters, wanted.limit + 1))
    )
    page = rows[: wanted.limit]
    last = page[-1]["id"] if len(rows) > wanted.limit else None
    return problems.answer(200, {"jobs": [_listed(row) for row in page], "next": last})


def _listed(row: Row) -> dict[str, Any]:
    named = {"job_id": row["id"], **_fields(row, LISTED)}
    return {**named, "render_id": row["render_id"], "outputs": row["outputs"], "kept": row["kept"]}


async def history(request: Request) -> Response:
    """Answer 200 with a page of a job's events, oldest first, 404 when there is no such job."""
    job_id = ids.read(request.path_params["job_id"], "job")
    wanted = query.read(request, query.History)
    caller = permissions.of(request)

    def work(conn: Connection) -> list[Row] | None:
        row = jobs.show(conn, job_id)
        if row is None or not caller.sees(row["owner"]):
            return None
        return events.page_of_job(conn, job_id, wanted.after, wanted.limit + 1)

    rows = await context.of(request).threads.run(lambda database: database.run(work))
    if rows is None:
        raise ids.missing("job")
    page = rows[: wanted.limit]
    last = page[-1]["id"] if len(rows) > wanted.limit else None
    return problems.answer(200, {"job_id": job_id, "events": [_fields(row, EVENT) for row in page], "next": last})


async def show(request: Request) -> Response:
    """Answer 200 with a job as it stands, 404 when there is none."""
    at = context.of(request)
    job_id = ids.read(request.path_params["job_id"], "job")
    caller = permissions.of(request)
    fields = await at.threads.run(
        lambda database: snapshots.read(database, lambda conn: _read(conn, job_id, at, caller))
    )
    if fields is None:
        raise ids.missing("job")
    return problems.answer(200, fields)


def _read(conn: Connection, job_id: UUID, at: context.Desk, caller: Caller) -> dict[str, Any] | None:
    row = jobs.show(conn, job_id)
    if row is None or not caller.sees(row["owner"]):
        return None
    published = [variants.shown(found, at.asset_base) for found in renders.variants(conn, job_id)]
    is_published = row["render_id"] is not None and row["deleted_at"] is None
    return {
        "job_id": job_id,
        **_fields(row, JOB),
        "policy": row["partial"],
        "variants_asked": row["variants"],
        "render_id": row["render_id"] if is_published else None,
        "published_at": row["published_at"] if is_published else None,
        "variants_created": len(published),
        "variants": published,
        "predictions": [_prediction(found, caller) for found in predictions.of_job(conn, job_id)],
        "outputs": [_output(found, caller) for found in outputs.of_job(conn, job_id)],
        "errors": [{"job_id": job_id, **_fields(found, ERROR)} for found in jobs.errors(conn, job_id)],
    }


def _prediction(row: Row, caller: Caller) -> dict[str, Any]:
    named = {"prediction_id": row["id"], "type": row["category"], "message": _message(row, caller)}
    return {**named, **_fields(row, PREDICTION)}


def _output(row: Row, caller: Caller) -> dict[str, Any]:
    """Return an output without its source: the address may carry the provider's signature."""
    named = {"output_id": row["id"], "type": row["category"], "message": _message(row, caller)}
    return {**named, **_fields(row, OUTPUT)}


def _message(row: Row, caller: Caller) -> str | None:
    """Return why a row is as it is; why it is tried again names servers of ours, and is no owner's business."""
    is_trying = row["state"] in ("waiting", "discarding", "planned", "submitting", "running")
    return None if is_trying and caller.level < Level.APPLICATION else row["reason"]


def _fields(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names}
