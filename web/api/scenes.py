"""/v1/projects/{project_id}/scenes: adds, removes and reorders scenes; placements of files follow."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import Depends, Response
from psycopg.types.json import Jsonb
from pydantic import ConfigDict, Field

from db import placements, projects
from db.connection import Connection
from moorage import ids, scene_documents
from moorage.model import ProjectKey, SceneRef
from web.api.projects import IfMatch, ProjectId, add_etag, find_project, lock_project, read_project, write_document
from web.api.responses import Project
from web.http.json_body import BodyBytes, Json
from web.http.problems import Problem
from web.http.query import Filters, OwnerQuery
from web.http.router import Router
from web.http.validation import Body, SceneInDocument, SceneName, invalid_field
from web.services.context import AnyCaller, Context

DocumentChange = Callable[[Connection, ProjectKey, dict[str, Any]], None]  # connection, key, document
ProjectWriter = Callable[[DocumentChange], Awaitable[Project]]

router: Final = Router(prefix="/projects/{project_id}/scenes", tags=["projects"])


class SceneBody(Body):
    """A scene: its name, and any other fields of the application."""

    model_config = ConfigDict(extra="allow")

    id: SceneName | None = None  # generated if there is neither id nor index
    index: SceneName | None = None


class SceneOrderBody(Body):
    """The names (id, else index) of scenes in their new order; the scenes that are not named follow them."""

    order: Annotated[list[SceneInDocument], Field(max_length=scene_documents.MAX_SCENES)]


async def lock_and_change(
    project_id: ProjectId,
    response: Response,
    params: Filters[OwnerQuery],
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
async def add_scene(writer: Writer, scene: Json[SceneBody], data: BodyBytes) -> Project:
    """Append a scene to a project; files that waited for it are placed in it."""

    def add(conn: Connection, key: ProjectKey, document: dict[str, Any]) -> None:
        extra_fields = {} if _choose_scene_name(document, scene) else {"id": str(ids.uuid7())}
        if projects.add_scene(conn, key, data.decode(), Jsonb(extra_fields)) > scene_documents.MAX_BYTES:
            raise Problem(409, f"the document would be larger than {scene_documents.MAX_BYTES} bytes: remove scenes")

    return await writer(add)


@router.patch("", response_description="the project in its new order")
async def reorder_scenes(writer: Writer, body: Json[SceneOrderBody]) -> Project:
    """Reorder the scenes of a project; those that are not named follow the others."""

    def reorder(conn: Connection, key: ProjectKey, document: dict[str, Any]) -> None:
        positions = _resolve_scene_order(document, body.order)
        if positions:
            projects.reorder_scenes(conn, key, positions)

    return await writer(reorder)


@router.delete("/{scene}", status_code=204, response_description="removed")
async def remove_scene(scene: str, writer: Writer) -> None:
    """Remove a scene from a project; its files are unplaced."""

    def remove(conn: Connection, key: ProjectKey, document: dict[str, Any]) -> None:
        positions = scene_documents.find_scene_positions(document, scene)
        if not positions:
            raise Problem(404, "scene not found in this project")
        projects.remove_scenes(conn, key, positions)

    await writer(remove)


def _choose_scene_name(document: dict[str, Any], scene: SceneBody) -> str | None:
    """Return the name of a new scene, None without id and index. Raises Problem: 409 duplicate or too many."""
    if len(scene_documents.get_scenes(document)) >= scene_documents.MAX_SCENES:
        raise Problem(409, f"the project has {scene_documents.MAX_SCENES} scenes already")
    names = [scene_documents.normalize_scene_name(name) for name in (scene.id, scene.index) if name is not None]
    for name in names:
        if scene_documents.find_scene_positions(document, name):
            raise Problem(409, f"scene {name} exists already")
    return scene_documents.get_scene_name({"id": scene.id, "index": scene.index})


def _resolve_scene_order(document: dict[str, Any], order: list[SceneRef]) -> list[int]:
    """Return the present positions of a document's scenes in a new order. Raises Problem: 422 unknown or duplicate."""
    positions = scene_documents.index_scene_positions(document)
    ordered: list[int] = []
    for scene in order:
        name = scene_documents.normalize_scene_name(scene)
        if name not in positions:
            raise invalid_field("order", f"names {name[:60]!r}, which is not a scene of the document")
        ordered += positions[name]
    named = set(ordered)
    if len(named) < len(ordered):
        raise invalid_field("order", "names a scene twice")
    count = len(scene_documents.get_scenes(document))
    return ordered + [position for position in range(count) if position not in named]
