"""Where a file belongs in an application's document: pure functions over its scenes."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from moorage.model import SceneRef

Document = dict[str, Any]
MAX_DIGITS: Final = 4000


def find_scene_key(document: Mapping[str, Any], scene: SceneRef | None) -> str | None:
    """
    Return the key of the one scene that a job's `scene` names, or None: unplaced.

    Matched by `id` over all scenes, else by `index` as given over all, else by position from 1 among the scenes that
    have neither. A number and its text are the same name ("3" and 3). Keys are "id:...", "index:..." or
    "position:...".
    """
    return _key_among(_keys(get_scenes(document)), scene)


def find_scene_keys(document: Mapping[str, Any], names: Iterable[SceneRef | None]) -> list[str | None]:
    """Return the scene key of each of a project's files."""
    keys = _keys(get_scenes(document))
    return [_key_among(keys, scene) for scene in names]


def diff_image_urls(document: Mapping[str, Any], urls: Mapping[str, Sequence[str]]) -> dict[int, list[str]]:
    """
    Return what `imageUrls` must become, by the position (from 0) of each scene where it differs.

    Only these are to be written: the rest of a document is the application's, whatever it holds.

    Args:
        urls: the addresses that stand in each scene, by its key.
    """
    changed: dict[int, list[str]] = {}
    done: set[str] = set()
    scenes = get_scenes(document)
    for position, (scene, names) in enumerate(zip(scenes, _names_of_each(scenes), strict=True)):
        mine = [url for name in names if name not in done for url in urls.get(name, ())]
        done.update(names)
        if names and (mine or "imageUrls" in scene) and scene.get("imageUrls") != mine:
            changed[position] = mine
    return changed


def replace_image_urls(document: Mapping[str, Any], urls: Mapping[str, Sequence[str]]) -> Document:
    """Return the document with `imageUrls` of every scene as computed; all else is left as it is."""
    changed = diff_image_urls(document, urls)
    if not changed:
        return dict(document)
    scenes = [
        {**scene, "imageUrls": changed[position]} if position in changed else scene
        for position, scene in enumerate(get_scenes(document))
    ]
    return {**document, "scenes": scenes}


def parse_document(text: str) -> Document:
    """
    Return a document from its JSON text, for looking at: numbers beyond Python's own are read approximately.

    jsonb takes integers and fractions of any length. Python refuses to read more than 4,300 digits and writes what is
    beyond a float as Infinity, which is no JSON.
    """
    document: Document = json.loads(text, parse_int=_integer, parse_float=_fraction)
    return document


def _integer(digits: str) -> int | float | str:
    return int(digits) if len(digits) <= MAX_DIGITS else _fraction(digits)


def _fraction(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits


def get_scenes(document: Mapping[str, Any]) -> list[Any]:
    """Return the document's scenes; a document without a list of them has none."""
    scenes = document.get("scenes")
    return scenes if isinstance(scenes, list) else []


def find_scene_positions(document: Mapping[str, Any], wanted: str) -> list[int]:
    """Return the positions, from 0, of the scenes whose `id` is a name, else of those whose `index` is it."""
    return index_scene_positions(document).get(wanted, [])


def index_scene_positions(document: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return what `named` does for every name that a scene of the document has."""
    scenes = [scene if isinstance(scene, Mapping) else {} for scene in get_scenes(document)]
    made: dict[str, list[int]] = {}
    for kind in ("index", "id"):  # a name that is an id is no index any more
        found = defaultdict(list)
        for at, scene in enumerate(scenes):
            if _is_name(scene.get(kind)):
                found[normalize_scene_name(scene[kind])].append(at)
        made |= found
    return made


def get_scene_name(scene: Mapping[str, Any]) -> str | None:
    """Return what a scene is called by: its id, else its index, as text; None when it has neither."""
    return next((normalize_scene_name(scene[kind]) for kind in ("id", "index") if _is_name(scene.get(kind))), None)


def list_scene_images(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `id`, `index` (its place from 1 where it says none) and `imageUrls` of every scene of a document."""
    told = []
    for place, scene in enumerate(get_scenes(document), 1):
        has = scene if isinstance(scene, Mapping) else {}
        index = has["index"] if _is_name(has.get("index")) else place
        told.append({"id": has.get("id"), "index": index, "imageUrls": has.get("imageUrls", [])})
    return told


def digest_document(document: Mapping[str, Any]) -> str:
    """Return a digest of what is the application's in a document: it stays when only `imageUrls` was computed anew."""
    scenes = [
        {field: value for field, value in scene.items() if field != "imageUrls"}
        if isinstance(scene, Mapping)
        else scene
        for scene in get_scenes(document)
    ]
    mine = {**document, "scenes": scenes} if "scenes" in document else dict(document)
    return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()[:32]


def _names_of_each(scenes: Sequence[Any]) -> list[list[str]]:
    """Return, for each scene, the keys it answers to: its id and index, or its position among those with neither."""
    names: list[list[str]] = []
    position = 0
    for scene in scenes:
        mine = []
        if isinstance(scene, Mapping):
            mine = [
                f"{kind}:{normalize_scene_name(scene[kind])}" for kind in ("id", "index") if _is_name(scene.get(kind))
            ]
            if not mine:
                position += 1
                mine = [f"position:{position}"]
        names.append(mine)
    return names


def _key_among(keys: Set[str], scene: SceneRef | None) -> str | None:
    wanted = None if scene is None else normalize_scene_name(scene)
    found = (f"{kind}:{wanted}" for kind in ("id", "index", "position"))
    return None if wanted is None else next((key for key in found if key in keys), None)


def _keys(scenes: Sequence[Any]) -> set[str]:
    return {name for names in _names_of_each(scenes) for name in names}


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def normalize_scene_name(value: SceneRef) -> str:
    """Return a name as text: a number and its text are the same."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
