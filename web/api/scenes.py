"""/v1/projects/{project_id}/scenes: scenes added, removed and put in order; what belongs to them follows."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from db import projects
from db.connection import Connection
from moorage import ids, scene_documents
from web.api import project_schema
from web.api import projects as answers
from web.api.project_schema import SceneBody, SceneOrderBody
from web.http import json_body, permissions, problems
from web.http.problems import Problem
from web.services import context


async def add_scene(request: Request) -> Response:
    """Answer 201 with the project, a scene added behind the last; files that waited for it stand in it."""
    body, text = await json_body.read_object_and_text(request)
    scene = project_schema.parse_body(body, SceneBody)

    def change(conn: Connection, document: dict[str, Any], project_id: str) -> None:
        more = {} if project_schema.choose_scene_name(document, scene) else {"id": str(ids.uuid7())}
        projects.add_scene(conn, project_id, text, more)

    return await _change_document(request, 201, change)


async def reorder_scenes(request: Request) -> Response:
    """Answer 200 with the project, its scenes in another order: those that are named first, as named."""
    wanted = project_schema.parse_body(await json_body.read_object(request), SceneOrderBody)

    def change(conn: Connection, document: dict[str, Any], project_id: str) -> None:
        positions = project_schema.resolve_scene_order(document, wanted.order)
        if positions:
            projects.reorder_scenes(conn, project_id, positions)

    return await _change_document(request, 200, change)


async def remove_scene(request: Request) -> Response:
    """Answer 204 when a scene is removed, 404 when there is none of that name; its files are then unplaced."""
    name = str(request.path_params["scene"])

    def change(conn: Connection, document: dict[str, Any], project_id: str) -> None:
        positions = scene_documents.find_scene_positions(document, name)
        if not positions:
            raise Problem(404, "there is no such scene in this project")
        projects.remove_scenes(conn, project_id, positions)

    await _change_document(request, 204, change)
    return Response(status_code=204, headers=problems.NO_STORE)


async def _change_document(request: Request, status: int, change: Any) -> Response:
    """Change a project's document under its lock, compute it anew, and answer with the whole project."""
    at = context.get_context(request)
    project_id, caller = answers.parse_project_id(request), permissions.get_caller(request)
    match = request.headers.get("if-match")

    def work(conn: Connection) -> dict[str, Any]:
        project = answers.lock_project(conn, project_id, caller, match)
        change(conn, project["document"], project_id)
        projects.update_image_urls(conn, answers.lock_project(conn, project_id, caller, None), at.asset_base)
        return answers.read_project(conn, project_id, caller, at.asset_base)

    return answers.project_response(status, await answers.write_document(at, work))
