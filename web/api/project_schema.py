"""Request schemas of projects and scenes."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from moorage import scene_documents
from moorage.model import SceneRef
from moorage.text import is_storable
from web.http import validation
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.validation import Body, Name, SceneName, invalid_field


def _check_storable(text: str) -> str:
    if not is_storable(text):
        raise ValueError("cannot be stored")
    return text


def _check_scene_name(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is neither a string nor a number")
    return value


ProjectId = Annotated[str, Path(max_length=validation.MAX_NAME_CHARS), AfterValidator(_check_storable)]


class ProjectBody(Body):
    """A project's owner, and the application's document: any object whose `scenes` is a list of objects."""

    owner: Name | None = None  # not with an owner token, which determines it
    document: dict[str, Any]


class SceneBody(Body):
    """A scene: its name, and any other fields of the application."""

    model_config = ConfigDict(extra="allow")

    id: SceneName = None  # generated if there is neither id nor index
    index: SceneName = None


class SceneOrderBody(Body):
    """The names (id, else index) of scenes in their new order; the scenes that are not named follow them."""

    order: Annotated[
        list[Annotated[str | int | float, BeforeValidator(_check_scene_name)]],
        Field(max_length=scene_documents.MAX_SCENES),
    ]


def check_project_body(parsed: ProjectBody, caller: Caller) -> str:
    """Validate the body of a project and return its owner. Raises Problem: 422, or 403 not the caller's owner."""
    owner = caller.resolve_owner(parsed.owner)
    if owner is None:
        raise invalid_field("owner", "is required")
    scenes = parsed.document.get("scenes", [])
    if not isinstance(scenes, list) or not all(isinstance(scene, dict) for scene in scenes):
        raise invalid_field("document", "has scenes that are not a list of objects")
    if len(scenes) > scene_documents.MAX_SCENES:
        raise invalid_field("document", f"has {len(scenes)} scenes, more than {scene_documents.MAX_SCENES}")
    return owner


def choose_scene_name(document: dict[str, Any], scene: SceneBody) -> str | None:
    """Return the name of a new scene, None without id and index. Raises Problem: 409 duplicate or too many."""
    if len(scene_documents.get_scenes(document)) >= scene_documents.MAX_SCENES:
        raise Problem(409, f"the project has {scene_documents.MAX_SCENES} scenes already")
    names = [scene_documents.normalize_scene_name(name) for name in (scene.id, scene.index) if name is not None]
    for name in names:
        if scene_documents.find_scene_positions(document, name):
            raise Problem(409, f"scene {name} exists already")
    return scene_documents.get_scene_name({"id": scene.id, "index": scene.index})


def resolve_scene_order(document: dict[str, Any], order: list[SceneRef]) -> list[int]:
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
