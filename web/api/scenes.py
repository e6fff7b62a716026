"""/v1/projects/{project_id}/scenes: adds, removes and reorders scenes; placements of files follow."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from db import placements, projects
from db.connection import Connection
from moorage import ids, scene_documents
from web.api import project_schema
from web.api.project_schema import SceneBody, SceneOrderBody
from web.api.projects import lock_project, parse_project_id, project_response, read_project, write_document
from web.http import json_body, permissions, problems
from web.http.problems import Problem
from web.services import context

DocumentChange = Callable[[Connection, dict[str, Any], str], None]  # connection, document, project id


async def add_scene(request: Request) -> Response:
    """Append a scene to a project; files that waited for it are placed in it."""
    body, text = await json_body.read_object_and_text(request)
    scene = project_schema.parse_document_body(body, SceneBody)

    def add(conn: Connection, document: dict[str, Any], project_id: str) -> None:
        extra_fields = {} if project_schema.choose_scene_name(document, scene) else {"id": str(ids.uuid7())}
        projects.add_scene(conn, project_id, text, extra_fields)

    return await _change_document(request, 201, add)


async def reorder_scenes(request: Request) -> Response:
    """Reorder the scenes of a project; those that are not named follow the others."""
    body = project_schema.parse_document_body(await json_body.read_object(request), SceneOrderBody)

    def reorder(conn: Connection, document: dict[str, Any], project_id: str) -> None:
        positions = project_schema.resolve_scene_order(document, body.order)
        if positions:
            projects.reorder_scenes(conn, project_id, positions)

    return await _change_document(request, 200, reorder)


async def remove_scene(request: Request) -> Response:
    """Remove a scene from a project; its files are unplaced."""
    name = str(request.path_params["scene"])

    def remove(conn: Connection, document: dict[str, Any], project_id: str) -> None:
        positions = scene_documents.find_scene_positions(document, name)
        if not positions:
            raise Problem(404, "scene not found in this project")
        projects.remove_scenes(conn, project_id, positions)

    await _change_document(request, 204, remove)
    return Response(status_code=204, headers=problems.NO_STORE)


async def _change_document(request: Request, status: int, change: DocumentChange) -> Response:
    """Change a project's document under its lock, recompute its image URLs, and return the project."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    project_id = parse_project_id(request)
    if_match = request.headers.get("if-match")

    def write(conn: Connection) -> dict[str, Any]:
        project = lock_project(conn, project_id, caller, if_match)
        change(conn, project["document"], project_id)
        placements.update_image_urls(conn, lock_project(conn, project_id, caller, None), ctx.asset_base)
        return read_project(conn, project_id, caller, ctx.asset_base)

    return project_response(status, await write_document(ctx, write))
