"""Projects and their documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from db import placements
from db.connection import Connection, Row, fetch_all, fetch_one
from moorage import scene_documents

ENSURE_OPEN = """
INSERT INTO projects (id, owner) VALUES (%(id)s, %(owner)s)
ON CONFLICT (id) DO UPDATE SET status = 'open' WHERE projects.status <> 'open'
"""


GET_OWNER = "SELECT owner FROM projects WHERE id = %(id)s"


def ensure_open(conn: Connection, project_id: str, owner: str) -> bool:
    """
    Create an empty project for a new job if there is none, and set it to `open`.

    Return False if the project belongs to another owner; the caller must then roll back.
    """
    conn.execute(ENSURE_OPEN, {"id": project_id, "owner": owner})
    row = fetch_one(conn, GET_OWNER, {"id": project_id})
    return row is not None and row["owner"] == owner


ADD = """
INSERT INTO projects (id, owner, document) VALUES (%(id)s, %(owner)s, %(envelope)s::jsonb -> 'document')
ON CONFLICT (id) DO NOTHING
RETURNING id
"""


def add(conn: Connection, project_id: str, owner: str, envelope: str) -> bool:
    """
    Insert a project with its document; return False if the id exists.

    `envelope`: JSON text of an object with the document under `document`. PostgreSQL parses it, so that no number
    loses precision in this process.
    """
    return fetch_one(conn, ADD, {"id": project_id, "owner": owner, "envelope": envelope}) is not None


REPLACE_DOCUMENT = """
UPDATE projects SET document = %(envelope)s::jsonb -> 'document', updated_at = moment() WHERE id = %(id)s
"""

ADD_SCENE = """
UPDATE projects SET updated_at = moment(),
       document = jsonb_set(document, '{scenes}', CASE jsonb_typeof(document -> 'scenes') WHEN 'array'
                            THEN document -> 'scenes' ELSE '[]' END
                            || jsonb_build_array(%(scene)s::jsonb || %(extra_fields)s))
 WHERE id = %(id)s
"""

# These statements write a document once, whatever the number of scenes: it may be 1 MB.
REMOVE_SCENES = """
UPDATE projects SET updated_at = moment(),
       document = jsonb_set(document, '{scenes}', coalesce((
           SELECT jsonb_agg(s.scene ORDER BY s.n)
             FROM jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n)
            WHERE s.n - 1 <> ALL(%(positions)s::integer[])), '[]'))
 WHERE id = %(id)s
"""

REORDER_SCENES = """
UPDATE projects SET updated_at = moment(),
       document = jsonb_set(document, '{scenes}', (
           SELECT jsonb_agg(s.scene ORDER BY o.target)
             FROM unnest(%(positions)s::integer[]) WITH ORDINALITY AS o (position, target)
             JOIN jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n) ON s.n = o.position + 1))
 WHERE id = %(id)s
"""


def replace_document(conn: Connection, project_id: str, envelope: str) -> None:
    """Replace the document of a locked project; then `update_image_urls`. `envelope`: see `add`."""
    conn.execute(REPLACE_DOCUMENT, {"id": project_id, "envelope": envelope})


def add_scene(conn: Connection, project_id: str, scene: str, extra_fields: Mapping[str, Any]) -> None:
    """Append a scene (JSON text), with `extra_fields` merged into it, to a locked project."""
    conn.execute(ADD_SCENE, {"id": project_id, "scene": scene, "extra_fields": Jsonb(dict(extra_fields))})


def remove_scenes(conn: Connection, project_id: str, positions: Sequence[int]) -> None:
    """Remove scenes of a locked project by position, from 0."""
    conn.execute(REMOVE_SCENES, {"id": project_id, "positions": list(positions)})


def reorder_scenes(conn: Connection, project_id: str, positions: Sequence[int]) -> None:
    """Reorder the scenes of a locked project. `positions`: a permutation of the current positions, not empty."""
    conn.execute(REORDER_SCENES, {"id": project_id, "positions": list(positions)})


LOCK = "SELECT id, owner, document::text AS document FROM projects WHERE id = %(id)s FOR UPDATE"


def lock(conn: Connection, project_id: str) -> Row | None:
    """Lock a project: after outputs, before inserting rows that reference it."""
    return _parse_document(fetch_one(conn, LOCK, {"id": project_id}))


IS_OVERWRITTEN = "computed_md5 IS DISTINCT FROM document_md5"
OVERWRITTEN = f"""
SELECT id FROM projects WHERE {IS_OVERWRITTEN}
 ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""


def list_overwritten(conn: Connection, limit: int = 50) -> list[str]:
    """Return ids of unlocked projects whose document another writer changed since `imageUrls` was computed."""
    return [row["id"] for row in fetch_all(conn, OVERWRITTEN, {"limit": limit})]


GET = "SELECT id, owner, document::text AS document, created_at, updated_at FROM projects WHERE id = %(id)s"


def get(conn: Connection, project_id: str) -> Row | None:
    return _parse_document(fetch_one(conn, GET, {"id": project_id}))


def get_with_image_urls(conn: Connection, project_id: str, asset_base: str) -> Row | None:
    """
    Return a project with its document, current `imageUrls`, and `unplaced`: the files without a scene.

    `imageUrls` is computed on read, so that a document just overwritten by another writer is returned correctly.
    """
    project = get(conn, project_id)
    if project is None:
        return None
    placed = placements.list_placements(conn, project_id)
    keys = scene_documents.find_scene_keys(project["document"], (row["scene"] for row in placed))
    document = scene_documents.replace_image_urls(
        project["document"], placements.group_urls_by_scene(zip(placed, keys, strict=True), asset_base)
    )
    unplaced = [row for row, key in zip(placed, keys, strict=True) if key is None]
    return {**project, "document": document, "unplaced": unplaced}


def _parse_document(row: Row | None) -> Row | None:
    return row and {**row, "document": scene_documents.parse_document(row["document"])}
