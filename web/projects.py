"""GET /v1/projects/{project_id}: an application's document with the files of its scenes."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from db import projects
from db.connect import Connection
from moorage.text import is_storable
from storage import addresses
from web import access, desk, problems, snapshots
from web.problems import Problem


async def show(request: Request) -> Response:
    """Answer 200 with a project as it stands, 404 when there is none."""
    at = desk.of(request)
    project_id = request.path_params["project_id"]
    if not is_storable(project_id):
        raise _missing()
    fields = await at.threads.run(
        lambda database: snapshots.read(database, lambda conn: _read(conn, project_id, at.asset_base))
    )
    if fields is None or not access.of(request).sees(fields["owner"]):
        raise _missing()
    return problems.answer(200, fields)


def _missing() -> Problem:
    return Problem(404, "there is no such project")


def _read(conn: Connection, project_id: str, base: str) -> dict[str, Any] | None:
    row = projects.show(conn, project_id, base)
    if row is None:
        return None
    unplaced = [
        {
            "render_id": found["render_id"],
            "idx": found["idx"],
            "scene": found["scene"],
            "url": addresses.asset_url(base, found["key"]),
        }
        for found in row["unplaced"]
    ]
    named = {"project_id": row["id"], "owner": row["owner"], "document": row["document"]}
    return {**named, "unplaced": unplaced, "created_at": row["created_at"], "updated_at": row["updated_at"]}
