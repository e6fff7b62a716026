"""/v1/renders: what was published, newest first, one of them, and its end."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import jobs, renders
from db.connection import Connection, Row
from moorage import logs
from storage import urls
from tasks.jobs import delete_render
from web.http import ids, permissions, problems, query
from web.http.permissions import Caller
from web.http.problems import Problem
from web.services import context
from web.services import database as snapshots

log = logs.get(__name__)

RENDER: Final = (
    "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "state", "reason", "cover_idx",
    "created_at", "published_at", "settled_at",
)  # fmt: skip

FIELDS: Final = (
    "idx", "is_cover", "media", "content_type", "bytes", "sha256", "width_px", "height_px", "frames", "duration_s",
    "thumb_width_px", "thumb_height_px", "thumb_missing", "color", "is_placeholder",
)  # fmt: skip


async def index(request: Request) -> Response:
    """Answer 200 with a page of renders, newest first, each with its files."""
    at = context.of(request)
    wanted = query.read(request, query.Renders)
    filters = {**wanted.model_dump(exclude={"limit"}), "owner": permissions.of(request).whose(wanted.owner)}

    def work(conn: Connection) -> dict[str, Any]:
        rows = renders.page(conn, filters, wanted.limit + 1)
        page = rows[: wanted.limit]
        last = page[-1]["id"] if len(rows) > wanted.limit else None
        return {"renders": _with_files(conn, page, at.asset_base), "next": last}

    return problems.answer(200, await at.threads.run(lambda database: snapshots.read(database, work)))


async def show(request: Request) -> Response:
    """Answer 200 with a render and its files, 404 when there is none or it was deleted."""
    at = context.of(request)
    caller = permissions.of(request)
    render_id = ids.read(request.path_params["render_id"], "render")

    def work(conn: Connection) -> list[dict[str, Any]]:
        row = renders.show(conn, render_id)
        return _with_files(conn, [row], at.asset_base) if row and caller.sees(row["owner"]) else []

    found = await at.threads.run(lambda database: snapshots.read(database, work))
    if not found:
        raise ids.missing("render")
    return problems.answer(200, found[0])


async def delete(request: Request) -> Response:
    """Answer 204 when a render is deleted, now or before, 404 when there never was one, 409 while its job works."""
    at = context.of(request)
    caller = permissions.of(request)
    render_id = ids.read(request.path_params["render_id"], "render")
    try:
        is_there = await at.threads.run(
            lambda database: database.run(lambda conn: _delete(conn, render_id, at, caller))
        )
    except delete_render.StillWorking as error:
        raise Problem(409, "its job was taken up again: delete it once the job is settled") from error
    if not is_there:
        raise ids.missing("render")
    log.info("render.deleted", render_id=render_id)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _delete(conn: Connection, render_id: UUID, at: context.Desk, caller: Caller) -> bool:
    job = jobs.show(conn, render_id)
    if job is None or not caller.sees(job["owner"]):
        return False
    return delete_render.delete(
        conn, render_id, asset_base=at.asset_base, actor="api", reason="the application deleted it"
    )


def _with_files(conn: Connection, rows: Sequence[Row], base: str) -> list[dict[str, Any]]:
    files: dict[UUID, list[dict[str, Any]]] = {row["id"]: [] for row in rows}
    for found in renders.variants_of(conn, list(files)):
        files[found["render_id"]].append(shown(found, base))
    return [
        {"render_id": row["id"], **{name: row[name] for name in RENDER}, "variants": files[row["id"]]} for row in rows
    ]


def shown(row: Row, base: str) -> dict[str, Any]:
    """Return a row of the view `variants` with the addresses of its file and thumbnail; `base` stands before keys."""
    thumb = row["thumb_key"]
    return {
        **{name: row[name] for name in FIELDS},
        "url": urls.asset_url(base, row["key"]),
        "thumb_url": urls.asset_url(base, thumb) if thumb else None,
    }
