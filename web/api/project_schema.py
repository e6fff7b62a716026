"""What addresses of projects take in their bodies, and what is wrong with it."""

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moorage import scene_documents
from moorage.model import SceneRef
from moorage.text import is_storable
from web.http import validation
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.validation import Name, SceneName

B = TypeVar("B", bound=BaseModel)
MAX_SCENES: Final = 1000
MAX_DEPTH: Final = 64


class ProjectBody(BaseModel):
    """A project's owner, and the application's own document: any object, with its `scenes` as a list of objects."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    owner: Name | None = None  # not with an owner token, which says whose it is
    document: dict[str, Any]


class SceneBody(BaseModel):
    """A scene: its name, and whatever else the application keeps with it."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, hide_input_in_errors=True)

    id: SceneName = None  # one is made where there is neither id nor index
    index: SceneName = None


class SceneOrderBody(BaseModel):
    """The names (id, else index) of scenes in their new order; those that are not named come after them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    order: Annotated[list[str | int | float], Field(max_length=MAX_SCENES)]


def check_project_body(body: dict[str, Any], caller: Caller) -> str:
    """
    Return the owner of a project whose body is right.

    Raises:
        Problem: 422 with what is wrong; 403 for another owner than the caller.
    """
    wanted = parse_body(body, ProjectBody)
    owner = caller.resolve_owner(wanted.owner)
    if owner is None:
        raise validation.invalid_field("owner", "is missing: it must be given")
    given = wanted.document.get("scenes", [])
    if not isinstance(given, list) or not all(isinstance(scene, dict) for scene in given):
        raise validation.invalid_field("document", "has scenes that are no list of objects")
    if len(given) > MAX_SCENES:
        raise validation.invalid_field("document", f"has {len(given)} scenes, more than {MAX_SCENES}")
    return owner


def parse_body(body: dict[str, Any], model: type[B]) -> B:
    """Return a body as its model; raises Problem 422 with every field that is wrong."""
    errors = [validation.unknown_field(name, model) for name in validation.unstorable_names(body)]
    try:
        wanted = model.model_validate({name: value for name, value in body.items() if is_storable(name)})
    except ValidationError as error:
        errors += [validation.explain_error(item, model) for item in validation.limited_errors(error)]
    if not errors and validation.is_nested_deeper(body, MAX_DEPTH):
        errors = [{"field": "", "message": f"is nested more than {MAX_DEPTH} deep"}]
    if errors:
        raise validation.invalid_fields(errors)
    return wanted


def choose_scene_name(document: dict[str, Any], scene: SceneBody) -> str | None:
    """
    Return what a new scene is to be called by, None when it says nothing.

    Raises:
        Problem: 409 when another scene answers to its id or index, or there are too many.
    """
    if len(scene_documents.get_scenes(document)) >= MAX_SCENES:
        raise Problem(409, f"the project has {MAX_SCENES} scenes already")
    for name in (scene.id, scene.index):
        if name is not None and scene_documents.find_scene_positions(
            document, scene_documents.normalize_scene_name(name)
        ):
            raise Problem(
                409, f"there is a scene {scene_documents.normalize_scene_name(name)} already: name this one otherwise"
            )
    return scene_documents.get_scene_name({"id": scene.id, "index": scene.index})


def resolve_scene_order(document: dict[str, Any], order: list[SceneRef]) -> list[int]:
    """
    Return the present positions of a document's scenes in a new order.

    Raises:
        Problem: 422 when a name is no scene's, or one scene is named twice.
    """
    places = scene_documents.index_scene_positions(document)
    found = [at for name in order for at in places.get(scene_documents.normalize_scene_name(name)) or _unknown(name)]
    taken = set(found)
    if len(taken) < len(found):
        raise validation.invalid_field("order", "names a scene twice")
    return found + [at for at in range(len(scene_documents.get_scenes(document))) if at not in taken]


def _unknown(name: SceneRef) -> list[int]:
    raise validation.invalid_field(
        "order", f"names {scene_documents.normalize_scene_name(name)[:60]!r}, which is no scene of the document"
    )
