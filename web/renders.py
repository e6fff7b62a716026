"""/v1/renders: what was published, newest first, one of them, and its end."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import jobs, renders
from db.connect import Connection, Row
from moorage import logs
from tasks import tombstone
from web import access, desk, ids, problems, queries, snapshots, variants
from web.access import Caller
from web.problems import Problem

log = logs.get(__name__)

RENDER: Final = (
    "owner", "kind", "mode", "room_type", "style", "prompt", "project_id", "scene", "state", "reason", "cover_idx",
    "created_at", "published_at", "settled_at",
)  # fmt: skip


async def index(request: Request) -> Response:
    """Answer 200 with a page of renders, newest first, each with its files."""
    at = desk.of(request)
    wanted = queries.read(request, queries.Renders)
    filters = {**wanted.model_dump(exclude={"limit"}), "owner": access.of(request).whose(wanted.owner)}

    def work(conn: Connection) -> dict[str, Any]:
        rows = renders.page(conn, filters, wanted.limit + 1)
        page = rows[: wanted.limit]
        last = page[-1]["id"] if len(rows) > wanted.limit else None
        return {"renders": _with_files(conn, page, at.asset_base), "next": last}

    return problems.answer(200, await at.threads.run(lambda database: snapshots.read(database, work)))


async def show(request: Request) -> Response:
    """Answer 200 with a render and its files, 404 when there is none or it was deleted."""
    at = desk.of(request)
    caller = access.of(request)
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
    at = desk.of(request)
    caller = access.of(request)
    render_id = ids.read(request.path_params["render_id"], "render")
    try:
        is_there = await at.threads.run(
            lambda database: database.run(lambda conn: _delete(conn, render_id, at, caller))
        )
    except tombstone.StillWorking as error:
        raise Problem(409, "its job was taken up again: delete it once the job is settled") from error
    if not is_there:
        raise ids.missing("render")
    log.info("render.deleted", render_id=render_id)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _delete(conn: Connection, render_id: UUID, at: desk.Desk, caller: Caller) -> bool:
    job = jobs.show(conn, render_id)
    if job is None or not caller.sees(job["owner"]):
        return False
    return tombstone.delete(conn, render_id, asset_base=at.asset_base, actor="api", reason="the application deleted it")


def _with_files(conn: Connection, rows: Sequence[Row], base: str) -> list[dict[str, Any]]:
    files: dict[UUID, list[dict[str, Any]]] = {row["id"]: [] for row in rows}
    for found in renders.variants_of(conn, list(files)):
        files[found["render_id"]].append(variants.shown(found, base))
    return [
        {"render_id": row["id"], **{name: row[name] for name in RENDER}, "variants": files[row["id"]]} for row in rows
    ]
