"""Placement of variants in an application's document: pure functions over its scenes."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from moorage.model import SceneRef

Document = dict[str, Any]
MAX_SCENES: Final = 1000
MAX_BYTES: Final = 2**22  # as text, when a scene is added; the body of one request is at most 2.5 MiB in it
_MAX_DIGITS: Final = 4000


def find_scene_keys(document: Mapping[str, Any], names: Iterable[SceneRef | None]) -> list[str | None]:
    """
    Return the key of the scene that each job's `scene` refers to, or None if there is none.

    `id` is compared first, over all scenes, then `index`, then the position from 1 among the scenes with neither. A
    number and its text are equal ("3" and 3). Keys have the form "id:...", "index:..." or "position:...".
    """
    keys = {key for of_scene in _keys_by_scene(get_scenes(document)) for key in of_scene}
    return [_match_key(keys, scene) for scene in names]


def find_scenes_of_key(document: Mapping[str, Any], key: str) -> dict[int, list[str]]:
    """Return all keys of the scenes that have this key, by position from 0."""
    return {position: keys for position, keys in enumerate(_keys_by_scene(get_scenes(document))) if key in keys}


def diff_image_urls(document: Mapping[str, Any], urls: Mapping[str, Sequence[str]]) -> dict[int, list[str]]:
    """
    Return the new `imageUrls` of each scene in which they differ, by its position from 0. `urls`: by scene key.

    Only these fields may be written: the rest of the document belongs to the application.
    """
    changed: dict[int, list[str]] = {}
    used_keys: set[str] = set()
    scenes = get_scenes(document)
    for position, (scene, keys) in enumerate(zip(scenes, _keys_by_scene(scenes), strict=True)):
        new_urls = [url for key in keys if key not in used_keys for url in urls.get(key, ())]
        used_keys.update(keys)
        if keys and (new_urls or "imageUrls" in scene) and scene.get("imageUrls") != new_urls:
            changed[position] = new_urls
    return changed


def replace_image_urls(document: Mapping[str, Any], urls: Mapping[str, Sequence[str]]) -> Document:
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
    Parse a document for reading: numbers outside Python's range are approximated.

    jsonb accepts integers and fractions of any length. Python refuses to parse more than 4,300 digits, and serializes a
    number beyond a float as Infinity, which is not JSON.
    """
    document: Document = json.loads(text, parse_int=_integer, parse_float=_parse_finite_float)
    return document


def _integer(digits: str) -> int | float | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else _parse_finite_float(digits)


def _parse_finite_float(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits


def get_scenes(document: Mapping[str, Any]) -> list[Any]:
    scenes = document.get("scenes")
    return scenes if isinstance(scenes, list) else []


def find_scene_positions(document: Mapping[str, Any], name: str) -> list[int]:
    """Return the positions, from 0, of the scenes with this `id`, else of those with this `index`."""
    return index_scene_positions(document).get(name, [])


def index_scene_positions(document: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return `find_scene_positions` of every name in the document."""
    scenes = [scene if isinstance(scene, Mapping) else {} for scene in get_scenes(document)]
    positions: dict[str, list[int]] = {}
    for kind in ("index", "id"):  # an id takes precedence over an equal index
        of_kind = defaultdict(list)
        for position, scene in enumerate(scenes):
            if _is_name(scene.get(kind)):
                of_kind[normalize_scene_name(scene[kind])].append(position)
        positions |= of_kind
    return positions


def get_scene_name(scene: Mapping[str, Any]) -> str | None:
    """Return the scene's id, else its index, as text; None if it has neither."""
    return next((normalize_scene_name(scene[kind]) for kind in ("id", "index") if _is_name(scene.get(kind))), None)


def list_scenes_with_image_urls(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `id`, `index` (default: position from 1) and `imageUrls` of every scene."""
    images = []
    for position, scene in enumerate(get_scenes(document), 1):
        fields = scene if isinstance(scene, Mapping) else {}
        index = fields["index"] if _is_name(fields.get("index")) else position
        images.append({"id": fields.get("id"), "index": index, "imageUrls": fields.get("imageUrls", [])})
    return images


def digest_document(document: Mapping[str, Any]) -> str:
    """Return a digest of the application's part of a document, which excludes `imageUrls`."""
    scenes = [
        {field: value for field, value in scene.items() if field != "imageUrls"}
        if isinstance(scene, Mapping)
        else scene
        for scene in get_scenes(document)
    ]
    own = {**document, "scenes": scenes} if "scenes" in document else dict(document)
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:32]


def _keys_by_scene(scenes: Sequence[Any]) -> list[list[str]]:
    """Return the keys that refer to each scene: id and index, or the position among those with neither."""
    keys: list[list[str]] = []
    position = 0
    for scene in scenes:
        own = []
        if isinstance(scene, Mapping):
            own = [
                f"{kind}:{normalize_scene_name(scene[kind])}" for kind in ("id", "index") if _is_name(scene.get(kind))
            ]
            if not own:
                position += 1
                own = [f"position:{position}"]
        keys.append(own)
    return keys


def _match_key(keys: Set[str], scene: SceneRef | None) -> str | None:
    name = None if scene is None else normalize_scene_name(scene)
    candidates = (f"{kind}:{name}" for kind in ("id", "index", "position"))
    return None if name is None else next((key for key in candidates if key in keys), None)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def normalize_scene_name(value: SceneRef) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
