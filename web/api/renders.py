"""/v1/renders: lists, returns and deletes published renders."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

import tasks.jobs.delete_render
from db import jobs, renders
from db.connection import Connection, Row
from moorage import logs
from storage import urls
from tasks.jobs.delete_render import JobNotSettled
from web.http import ids, permissions, problems, query
from web.http.problems import Problem
from web.services import context

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
    """Return a page of renders with their variants, newest first."""
    ctx = context.get_context(request)
    params = query.parse_query(request, query.RenderQuery)
    owner = permissions.get_caller(request).resolve_owner(params.owner)
    filters = {**params.model_dump(exclude={"limit"}), "owner": owner}

    def read_page(conn: Connection) -> dict[str, Any]:
        page, next_id = query.split_page(renders.list_page(conn, filters, params.limit + 1), params.limit)
        return {"renders": _build_renders(conn, page, ctx.asset_base), "next": next_id}

    return problems.json_response(200, await ctx.database.read(read_page))


async def get_render(request: Request) -> Response:
    """Return a render with its variants."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    render_id = ids.parse_id(request.path_params["render_id"], "render")

    def read_render(conn: Connection) -> dict[str, Any]:
        row = caller.require_visible(renders.get_published(conn, render_id), "render")
        return _build_renders(conn, [row], ctx.asset_base)[0]

    return problems.json_response(200, await ctx.database.read(read_render))


async def delete_render(request: Request) -> Response:
    """Delete a render; one that is already deleted is unchanged. 409 while its job is reopened."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    render_id = ids.parse_id(request.path_params["render_id"], "render")

    def delete(conn: Connection) -> bool:
        caller.require_visible(jobs.get_with_render(conn, render_id), "render")
        return tasks.jobs.delete_render.delete_render(
            conn, render_id, asset_base=ctx.asset_base, actor="api", reason="deleted by the application"
        )

    try:
        is_deleted = await ctx.database.transaction(delete)
    except JobNotSettled as error:
        raise Problem(409, "the job was reopened: delete the render once the job is settled") from error
    if not is_deleted:
        raise ids.not_found("render")
    log.info("render.deleted", render_id=render_id)
    return Response(status_code=204, headers=problems.NO_STORE)


def _build_renders(conn: Connection, rows: Sequence[Row], base: str) -> list[dict[str, Any]]:
    variants: dict[UUID, list[dict[str, Any]]] = {row["id"]: [] for row in rows}
    for variant in renders.list_variants_of_renders(conn, list(variants)):
        variants[variant["render_id"]].append(build_variant(variant, base))
    return [
        {"render_id": row["id"], **{name: row[name] for name in RENDER_FIELDS}, "variants": variants[row["id"]]}
        for row in rows
    ]


def build_variant(row: Row, base: str) -> dict[str, Any]:
    """Return a row of the view `variants` with the URLs of its file and thumbnail; `base` is the URL prefix of keys."""
    thumb = row["thumb_key"]
    return {
        **{name: row[name] for name in VARIANT_FIELDS},
        "url": urls.build_asset_url(base, row["key"]),
        "thumb_url": urls.build_asset_url(base, thumb) if thumb else None,
    }
