"""/v1/renders: lists, returns and deletes published renders."""

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field

import tasks.jobs.delete_render
from db import jobs, renders
from db.connection import Connection, Row
from moorage import logs
from web.api.jobs import MAX_IDS, apply_to_each
from web.api.responses import BulkResult, Render, page_model
from web.http import problems, query, validation
from web.http.json_body import Json
from web.http.permissions import Caller
from web.http.query import Filters, RenderQuery
from web.http.router import Router
from web.http.validation import Body, Name, PathId, RowId
from web.services.context import AnyCaller, AppContext, Context

log = logs.get_logger(__name__)

router: Final = Router(prefix="/renders", tags=["renders"])


@router.get("", response_model=page_model("RenderPage", renders=Render), response_description="a page of renders")
async def list_renders(params: Filters[RenderQuery], caller: AnyCaller, ctx: Context) -> Row:
    """Return a page of renders with their variants, newest first."""
    filters = {**params.model_dump(exclude={"limit"}), "owner": caller.resolve_owner(params.owner)}

    def read_page(conn: Connection) -> Row:
        page, next_id = query.split_page(renders.list_page(conn, filters, params.limit + 1), params.limit)
        return {"renders": _build_renders(conn, page, ctx, caller), "next": next_id}

    return await ctx.database.read(read_page)


@router.get("/{render_id}", response_description="the render")
async def get_render(render_id: PathId, caller: AnyCaller, ctx: Context) -> Render:
    """Return a render with its variants."""

    def read_render(conn: Connection) -> Render:
        row = caller.require_visible(renders.get_published(conn, render_id), "render")
        return _build_renders(conn, [row], ctx, caller)[0]

    return await ctx.database.read(read_render)


class RenderBody(Body):
    """What to change; what is not named stays as it is."""

    title: Name | None = None
    favourite: bool = False
    cover_idx: Annotated[int, Field(ge=0, lt=2**31)] = 0


@router.patch("/{render_id}", response_description="the render as it is now")
async def update_render(render_id: PathId, caller: AnyCaller, ctx: Context, body: Json[RenderBody]) -> Render:
    """Change the title, favourite mark or cover of a render; the cover is one of its images or videos."""

    def update(conn: Connection) -> Render:
        caller.require_visible(renders.get_published(conn, render_id), "render")
        if not renders.update(conn, render_id, body.model_dump(exclude_unset=True)):
            raise validation.invalid_field("cover_idx", "is not the idx of an image or video of this render")
        return _build_renders(conn, [renders.get_published(conn, render_id) or {}], ctx, caller)[0]

    return await ctx.database.transaction(update)


class RenderIdsBody(Body):
    render_ids: Annotated[list[RowId], Field(min_length=1, max_length=MAX_IDS)]


@router.post("/delete", response_description="what became of each render")
async def delete_renders(caller: AnyCaller, ctx: Context, body: Json[RenderIdsBody]) -> BulkResult:
    """Delete renders, each in a transaction of its own; repeating the request is safe."""
    return await apply_to_each(body.render_ids, lambda render_id: delete_render(render_id, caller, ctx))


@router.delete("/{render_id}", status_code=204, response_description="deleted, now or before")
async def delete_render(render_id: PathId, caller: AnyCaller, ctx: Context) -> None:
    """Delete a render; one that is already deleted is unchanged. 409 while its job is reopened."""

    def delete(conn: Connection) -> bool:
        caller.require_visible(jobs.get_with_render(conn, render_id), "render")
        reason = "deleted on the page" if caller.client == "page" else "deleted by the application"
        return tasks.jobs.delete_render.delete_render(
            conn, render_id, asset_base=ctx.asset_base, actor=caller.client, reason=reason
        )

    if not await ctx.database.transaction(delete):
        raise problems.not_found("render")
    log.info("render.deleted", render_id=render_id)


def _build_renders(conn: Connection, rows: Sequence[Row], ctx: AppContext, caller: Caller) -> list[Render]:
    variants = ctx.list_variants(conn, (row["id"] for row in rows))
    shown = [ctx.visibility.filter_reason(caller.level, row) for row in rows]
    return [Render.model_validate({"render_id": row["id"], **row, "variants": variants[row["id"]]}) for row in shown]
