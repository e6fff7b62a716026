"""GET /v1/jobs/{job_id}: how a job stands, what was published of it and what went wrong."""

from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import jobs, outputs, predictions, renders
from db.connect import Connection, Row
from storage import addresses
from web import desk, problems, snapshots
from web.problems import Problem

JOB = (
    "state", "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "category", "reason",
    "created_at", "deadline_at", "settled_at", "reopened",
)  # fmt: skip
PREDICTION = ("provider", "external_id", "model", "state", "raw_status", "created_at", "deadline_at", "ended_at")
OUTPUT = ("idx", "path", "state", "attempt", "run_at", "expires_at", "ended_at")
VARIANT = (
    "idx", "is_cover", "media", "content_type", "bytes", "sha256", "width_px", "height_px", "frames", "duration_s",
    "thumb_width_px", "thumb_height_px", "thumb_missing",
)  # fmt: skip
ERROR = ("type", "message", "prediction_id", "retryable", "subject", "subject_id", "idx", "path", "dead_letter_id")


async def show(request: Request) -> Response:
    """Answer 200 with a job as it stands, 404 when there is none."""
    at = desk.of(request)
    job_id = _job_id(request.path_params["job_id"])
    fields = await at.threads.run(lambda database: snapshots.read(database, lambda conn: _read(conn, job_id, at)))
    if fields is None:
        raise _missing()
    return problems.answer(200, fields)


def _job_id(text: str) -> UUID:
    """Return an id written as we write it; anything else names no job."""
    try:
        job_id = UUID(text)
    except ValueError as error:
        raise _missing() from error
    if str(job_id) != text.lower():
        raise _missing()
    return job_id


def _missing() -> Problem:
    return Problem(404, "there is no such job")


def _read(conn: Connection, job_id: UUID, at: desk.Desk) -> dict[str, Any] | None:
    row = jobs.show(conn, job_id)
    if row is None:
        return None
    variants = [_variant(found, at.asset_base) for found in renders.variants(conn, job_id)]
    is_published = row["render_id"] is not None and row["deleted_at"] is None
    return {
        "job_id": job_id,
        **_fields(row, JOB),
        "policy": row["partial"],
        "render_id": row["render_id"] if is_published else None,
        "published_at": row["published_at"] if is_published else None,
        "variants_created": len(variants),
        "variants": variants,
        "predictions": [_prediction(found) for found in predictions.of_job(conn, job_id)],
        "outputs": [_output(found) for found in outputs.of_job(conn, job_id)],
        "errors": [{"job_id": job_id, **_fields(found, ERROR)} for found in jobs.errors(conn, job_id)],
    }


def _variant(row: Row, base: str) -> dict[str, Any]:
    thumb = row["thumb_key"]
    return {
        **_fields(row, VARIANT),
        "url": addresses.asset_url(base, row["key"]),
        "thumb_url": addresses.asset_url(base, thumb) if thumb else None,
    }


def _prediction(row: Row) -> dict[str, Any]:
    named = {"prediction_id": row["id"], "type": row["category"], "message": row["reason"]}
    return {**named, **_fields(row, PREDICTION)}


def _output(row: Row) -> dict[str, Any]:
    """Return an output without its source: the address may carry the provider's signature."""
    named = {"output_id": row["id"], "type": row["category"], "message": row["reason"]}
    return {**named, **_fields(row, OUTPUT)}


def _fields(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names}
