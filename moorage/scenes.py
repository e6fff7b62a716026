"""Where a file belongs in an application's document: pure functions over its scenes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moorage.model import Scene

Document = dict[str, Any]


def key_of(document: Mapping[str, Any], scene: Scene | None) -> str | None:
    """
    Return the key of the one scene that a job's `scene` names, or None: unplaced.

    Matched by `id` over all scenes, else by `index` as given over all, else by position from 1 among the scenes that
    have neither. A number and its text are the same name ("3" and 3). Keys are "id:...", "index:..." or
    "position:...".
    """
    if scene is None:
        return None
    wanted = _name(scene)
    keys = _keys(scenes_of(document))
    for kind in ("id", "index", "position"):
        if f"{kind}:{wanted}" in keys:
            return f"{kind}:{wanted}"
    return None


def keys_of_all(document: Mapping[str, Any], wanted: Iterable[Scene | None]) -> list[str | None]:
    """Return the scene key of each of a project's files."""
    return [key_of(document, scene) for scene in wanted]


def with_urls(document: Mapping[str, Any], urls: Mapping[str, Sequence[str]]) -> Document:
    """
    Return the document with `imageUrls` of every scene as computed; all else is left as it is.

    Args:
        urls: the addresses that stand in each scene, by its key.
    """
    if not scenes_of(document):
        return dict(document)
    scenes = [dict(scene) if isinstance(scene, Mapping) else scene for scene in scenes_of(document)]
    done: set[str] = set()
    for scene, names in zip(scenes, _names_of_each(scenes), strict=True):
        if isinstance(scene, dict):
            mine = [url for name in names if name not in done for url in urls.get(name, ())]
            done.update(names)
            if mine or "imageUrls" in scene:
                scene["imageUrls"] = mine
    return {**document, "scenes": scenes}


def scenes_of(document: Mapping[str, Any]) -> list[Any]:
    """Return the document's scenes; a document without a list of them has none."""
    scenes = document.get("scenes")
    return scenes if isinstance(scenes, list) else []


def _names_of_each(scenes: Sequence[Any]) -> list[list[str]]:
    """Return, for each scene, the keys it answers to: its id and index, or its position among those with neither."""
    names: list[list[str]] = []
    position = 0
    for scene in scenes:
        mine = []
        if isinstance(scene, Mapping):
            mine = [f"{kind}:{_name(scene[kind])}" for kind in ("id", "index") if _is_name(scene.get(kind))]
            if not mine:
                position += 1
                mine = [f"position:{position}"]
        names.append(mine)
    return names


def _keys(scenes: Sequence[Any]) -> set[str]:
    return {name for names in _names_of_each(scenes) for name in names}


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def _name(value: Scene) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
