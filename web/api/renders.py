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

log = logs.get_logger(__name__)

RENDER_FIELDS: Final = (
    "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "state", "reason", "cover_idx",
    "created_at", "published_at", "settled_at",
)  # fmt: skip

VARIANT_FIELDS: Final = (
    "idx", "is_cover", "media", "content_type", "bytes", "sha256", "width_px", "height_px", "frames", "duration_s",
    "thumb_width_px", "thumb_height_px", "thumb_missing", "color", "is_placeholder",
)  # fmt: skip


async def list_renders(request: Request) -> Response:
    """Answer 200 with a page of renders, newest first, each with its files."""
    at = context.get_context(request)
    wanted = query.parse_query(request, query.RenderQuery)
    filters = {
        **wanted.model_dump(exclude={"limit"}),
        "owner": permissions.get_caller(request).resolve_owner(wanted.owner),
    }

    def work(conn: Connection) -> dict[str, Any]:
        rows = renders.list_page(conn, filters, wanted.limit + 1)
        page = rows[: wanted.limit]
        last = page[-1]["id"] if len(rows) > wanted.limit else None
        return {"renders": _build_renders(conn, page, at.asset_base), "next": last}

    return problems.json_response(200, await at.database.run(lambda database: snapshots.read(database, work)))


async def get_render(request: Request) -> Response:
    """Answer 200 with a render and its files, 404 when there is none or it was deleted."""
    at = context.get_context(request)
    caller = permissions.get_caller(request)
    render_id = ids.parse_id(request.path_params["render_id"], "render")

    def work(conn: Connection) -> list[dict[str, Any]]:
        row = renders.get_published(conn, render_id)
        return _build_renders(conn, [row], at.asset_base) if row and caller.can_see(row["owner"]) else []

    found = await at.database.run(lambda database: snapshots.read(database, work))
    if not found:
        raise ids.not_found("render")
    return problems.json_response(200, found[0])


async def delete(request: Request) -> Response:
    """Answer 204 when a render is deleted, now or before, 404 when there never was one, 409 while its job works."""
    at = context.get_context(request)
    caller = permissions.get_caller(request)
    render_id = ids.parse_id(request.path_params["render_id"], "render")
    try:
        is_there = await at.database.run(
            lambda database: database.run(lambda conn: _delete(conn, render_id, at, caller))
        )
    except delete_render.JobNotSettled as error:
        raise Problem(409, "its job was taken up again: delete it once the job is settled") from error
    if not is_there:
        raise ids.not_found("render")
    log.info("render.deleted", render_id=render_id)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _delete(conn: Connection, render_id: UUID, at: context.AppContext, caller: Caller) -> bool:
    job = jobs.get_with_render(conn, render_id)
    if job is None or not caller.can_see(job["owner"]):
        return False
    return delete_render.delete_render(
        conn, render_id, asset_base=at.asset_base, actor="api", reason="the application deleted it"
    )


def _build_renders(conn: Connection, rows: Sequence[Row], base: str) -> list[dict[str, Any]]:
    files: dict[UUID, list[dict[str, Any]]] = {row["id"]: [] for row in rows}
    for found in renders.list_variants_of_renders(conn, list(files)):
        files[found["render_id"]].append(build_variant(found, base))
    return [
        {"render_id": row["id"], **{name: row[name] for name in RENDER_FIELDS}, "variants": files[row["id"]]}
        for row in rows
    ]


def build_variant(row: Row, base: str) -> dict[str, Any]:
    """Return a row of the view `variants` with the addresses of its file and thumbnail; `base` stands before keys."""
    thumb = row["thumb_key"]
    return {
        **{name: row[name] for name in VARIANT_FIELDS},
        "url": urls.build_asset_url(base, row["key"]),
        "thumb_url": urls.build_asset_url(base, thumb) if thumb else None,
    }
