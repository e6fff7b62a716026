"""Rule 9 over documents: every project's `imageUrls` and placements are what its placements compute to."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from db import objects, projects
from db.audit.check import Check
from db.connection import Connection, Row
from moorage import scene_documents
from tasks.audit.findings import Finding
from tasks.step import Deps


def check_documents(deps: Deps, project_ids: Sequence[str], check: Check) -> Iterator[Finding]:
    """Go through some projects, one in memory."""
    for project_id in project_ids:
        wrong = deps.database.run(partial(_project, project_id=project_id, asset_base=deps.asset_base))
        yield from (Finding(check.rule, "project", project_id, what, check) for what in wrong)


def _project(conn: Connection, project_id: str, asset_base: str) -> list[str]:
    project = projects.get(conn, project_id)
    if project is None:
        return []
    placed = objects.list_placements(conn, project_id)
    keys = scene_documents.find_scene_keys(project["document"], (row["scene"] for row in placed))
    wrong = [_misplaced(row, key) for row, key in zip(placed, keys, strict=True) if row["scene_key"] != key]
    urls: dict[str, list[str]] = defaultdict(list)
    for row, key in zip(placed, keys, strict=True):
        if key is not None:
            urls[key].append(f"{asset_base}/{row['key']}")
    if scene_documents.replace_image_urls(project["document"], urls) != project["document"]:
        wrong.append("imageUrls of its document are not what its placements say")
    return wrong


def _misplaced(row: Row, key: str | None) -> str:
    place = row["scene_key"] or "no scene"
    return f"file {row['idx']} of render {row['render_id']} is placed in {place}, but belongs in {key or 'none'}"
