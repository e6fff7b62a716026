"""/v1/projects/{project_id}/scenes: adds, removes and reorders scenes; placements of files follow."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import Depends, Response

from db import placements, projects
from db.connection import Connection
from moorage import ids, scene_documents
from moorage.model import ProjectKey
from web.api import project_schema
from web.api.project_schema import ProjectId, SceneBody, SceneOrderBody
from web.api.projects import IfMatch, add_etag, find_project, lock_project, read_project, write_document
from web.api.responses import Project
from web.http import problems, query
from web.http.json_body import BodyBytes, JsonBody
from web.http.problems import Problem
from web.http.router import Router
from web.services.dependencies import AnyCaller, Context

DocumentChange = Callable[[Connection, ProjectKey, dict[str, Any]], None]  # connection, key, document
ProjectWriter = Callable[[DocumentChange], Awaitable[Project]]

router: Final = Router(prefix="/projects/{project_id}/scenes", tags=["projects"])


async def lock_and_change(
    project_id: ProjectId,
    response: Response,
    params: query.OwnerFilter,
    caller: AnyCaller,
    ctx: Context,
    if_match: IfMatch = None,
) -> ProjectWriter:
    """Dependency: changes a project's document under its lock, recomputes its image URLs, returns the project."""

    async def write(change: DocumentChange) -> Project:
        def work(conn: Connection) -> Project:
            key = find_project(conn, project_id, caller, params.owner)
            change(conn, key, lock_project(conn, key, if_match)["document"])
            placements.update_image_urls(conn, lock_project(conn, key, None), ctx.asset_base)
            return read_project(conn, key, caller, ctx)

        return add_etag(response, await write_document(ctx, work))

    return write


Writer = Annotated[ProjectWriter, Depends(lock_and_change)]


@router.post("", status_code=201, response_description="the project with the scene")
async def add_scene(
    writer: Writer, scene: Annotated[SceneBody, Depends(JsonBody(SceneBody))], data: BodyBytes
) -> Project:
    """Append a scene to a project; files that waited for it are placed in it."""

    def add(conn: Connection, key: ProjectKey, document: dict[str, Any]) -> None:
        extra_fields = {} if project_schema.choose_scene_name(document, scene) else {"id": str(ids.uuid7())}
        projects.add_scene(conn, key, data.decode(), extra_fields)

    return await writer(add)


@router.patch("", response_description="the project in its new order")
async def reorder_scenes(writer: Writer, body: Annotated[SceneOrderBody, Depends(JsonBody(SceneOrderBody))]) -> Project:
    """Reorder the scenes of a project; those that are not named follow the others."""

    def reorder(conn: Connection, key: ProjectKey, document: dict[str, Any]) -> None:
        positions = project_schema.resolve_scene_order(document, body.order)
        if positions:
            projects.reorder_scenes(conn, key, positions)

    return await writer(reorder)


@router.delete("/{scene}", status_code=204, response_description="removed")
async def remove_scene(scene: str, writer: Writer) -> Response:
    """Remove a scene from a project; its files are unplaced."""

    def remove(conn: Connection, key: ProjectKey, document: dict[str, Any]) -> None:
        positions = scene_documents.find_scene_positions(document, scene)
        if not positions:
            raise Problem(404, "scene not found in this project")
        projects.remove_scenes(conn, key, positions)

    await writer(remove)
    return problems.no_content()
