"""Rule 9 for documents: a project's `imageUrls` and scene keys equal those computed from its placements."""

from collections.abc import Iterator, Sequence
from functools import partial

from db import placements, projects
from db.audit.check import Check
from db.connection import Connection, Row
from moorage import scene_documents
from moorage.model import ProjectKey
from tasks.audit.findings import Finding
from tasks.step import Deps


def check_documents(deps: Deps, keys: Sequence[str], check: Check) -> Iterator[Finding]:
    """Yield the findings of projects, given by their keys as text."""
    for key in keys:
        work = partial(_check_project, key=ProjectKey.parse(key), asset_base=deps.asset_base)
        yield from (Finding(check.rule, "project", key, problem, check) for problem in deps.database.run(work))


def _check_project(conn: Connection, key: ProjectKey, asset_base: str) -> list[str]:
    project = projects.get(conn, key)
    if project is None:
        return []
    placed = placements.list_placements(conn, key)
    keys = scene_documents.find_scene_keys(project["document"], (row["scene"] for row in placed))
    pairs = list(zip(placed, keys, strict=True))
    problems = [_describe_misplacement(row, key) for row, key in pairs if row["scene_key"] != key]
    urls = placements.group_urls_by_scene(pairs, asset_base)
    if scene_documents.replace_image_urls(project["document"], urls) != project["document"]:
        problems.append("imageUrls of its document do not match its placements")
    return problems


def _describe_misplacement(row: Row, key: str | None) -> str:
    scene = row["scene_key"] or "no scene"
    return f"file {row['idx']} of render {row['render_id']} is placed in {scene}, but belongs in {key or 'none'}"
