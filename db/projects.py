"""Projects and placements: where each published file of an application's document belongs (rule 9)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from db.connection import Connection, Row, fetch_all, fetch_one
from moorage import scene_documents

ENSURE = """
INSERT INTO projects (id, owner) VALUES (%(id)s, %(owner)s)
ON CONFLICT (id) DO UPDATE SET status = 'open' WHERE projects.status <> 'open'
"""


OWNER = "SELECT owner FROM projects WHERE id = %(id)s"


def ensure_open(conn: Connection, project_id: str, owner: str) -> bool:
    """
    Have a project for a job that is about to be made: an empty one unless there is one, and open in any case.

    Returns False for another owner's; the caller's transaction is not to be committed then.
    """
    conn.execute(ENSURE, {"id": project_id, "owner": owner})
    row = fetch_one(conn, OWNER, {"id": project_id})
    return row is not None and row["owner"] == owner


ADD = """
INSERT INTO projects (id, owner, document) VALUES (%(id)s, %(owner)s, %(whole)s::jsonb -> 'document')
ON CONFLICT (id) DO NOTHING
RETURNING id
"""


def add(conn: Connection, project_id: str, owner: str, envelope: str) -> bool:
    """
    Insert a project with its document; False when there is one.

    Args:
        whole: JSON text of an object that has the document as `document`. PostgreSQL reads it itself, so that no number
            is cut on its way through this process.
    """
    return fetch_one(conn, ADD, {"id": project_id, "owner": owner, "whole": envelope}) is not None


REPLACE = """
UPDATE projects SET document = %(whole)s::jsonb -> 'document', updated_at = moment() WHERE id = %(id)s
"""

ADD_SCENE = """
UPDATE projects
   SET updated_at = moment(),
       document = jsonb_set(document, '{scenes}', CASE jsonb_typeof(document -> 'scenes') WHEN 'array'
                            THEN document -> 'scenes' ELSE '[]' END || jsonb_build_array(%(scene)s::jsonb || %(more)s))
 WHERE id = %(id)s
"""

# Each of these three writes a document once, however many of its scenes change: it may be a megabyte long.
REMOVE_SCENES = """
UPDATE projects
   SET updated_at = moment(),
       document = jsonb_set(document, '{scenes}', coalesce((
           SELECT jsonb_agg(s.scene ORDER BY s.n)
             FROM jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n)
            WHERE s.n - 1 <> ALL(%(positions)s::integer[])), '[]'))
 WHERE id = %(id)s
"""

ORDER_SCENES = """
UPDATE projects
   SET updated_at = moment(),
       document = jsonb_set(document, '{scenes}', (
           SELECT jsonb_agg(s.scene ORDER BY o.at)
             FROM unnest(%(positions)s::integer[]) WITH ORDINALITY AS o (place, at)
             JOIN jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n) ON s.n = o.place + 1))
 WHERE id = %(id)s
"""


def replace_document(conn: Connection, project_id: str, envelope: str) -> None:
    """Replace the document of a locked project by the one in `whole`, as `add` takes it; compute it afterwards."""
    conn.execute(REPLACE, {"id": project_id, "whole": envelope})


def add_scene(conn: Connection, project_id: str, scene: str, extra_fields: Mapping[str, Any]) -> None:
    """Add a scene, JSON text, and some fields of ours to it, behind the last of a locked project."""
    conn.execute(ADD_SCENE, {"id": project_id, "scene": scene, "more": Jsonb(dict(extra_fields))})


def remove_scenes(conn: Connection, project_id: str, positions: Sequence[int]) -> None:
    """Remove the scenes at some positions, from 0, of a locked project."""
    conn.execute(REMOVE_SCENES, {"id": project_id, "positions": list(positions)})


def reorder_scenes(conn: Connection, project_id: str, positions: Sequence[int]) -> None:
    """Put the scenes of a locked project, which has some, in the order of their present positions: each one once."""
    conn.execute(ORDER_SCENES, {"id": project_id, "positions": list(positions)})


LOCK = "SELECT id, owner, document::text AS document FROM projects WHERE id = %(id)s FOR UPDATE"

PLACE = """
INSERT INTO placements (render_id, idx, project_id, scene)
SELECT v.render_id, v.idx, j.project_id, j.scene
  FROM render_variants v JOIN jobs j ON j.id = v.render_id
 WHERE v.render_id = %(job_id)s AND j.project_id IS NOT NULL
ON CONFLICT DO NOTHING
"""

LIST_PLACED = """
SELECT p.render_id, p.idx, p.scene, p.scene_key, o.key
  FROM placements p
  JOIN render_variants v USING (render_id, idx)
  JOIN renders r ON r.id = p.render_id
  JOIN outputs o ON o.id = v.output_id
 WHERE p.project_id = %(id)s AND r.deleted_at IS NULL
   AND (NOT o.is_placeholder
        OR NOT EXISTS (SELECT FROM render_variants w JOIN outputs q ON q.id = w.output_id
                        WHERE w.render_id = p.render_id AND NOT q.is_placeholder))
 ORDER BY p.render_id, p.idx
"""

MOVE = """
UPDATE placements SET scene_key = %(scene_key)s
 WHERE render_id = %(render_id)s AND idx = %(idx)s AND scene_key IS DISTINCT FROM %(scene_key)s
"""

# Only imageUrls is written, by the scenes' positions: what else a document holds never passes through this process.
WRITE = """
UPDATE projects
   SET document = jsonb_set(document, '{scenes}', (
           SELECT jsonb_agg(CASE WHEN w.value IS NULL THEN s.scene
                                 ELSE s.scene || jsonb_build_object('imageUrls', w.value) END ORDER BY s.n)
             FROM jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n)
             LEFT JOIN jsonb_each(%(urls)s::jsonb) AS w ON w.key = (s.n - 1)::text))
 WHERE id = %(id)s
"""

SEAL = """
UPDATE projects SET computed_md5 = document_md5, updated_at = moment()
 WHERE id = %(id)s AND computed_md5 IS DISTINCT FROM document_md5
"""


def lock(conn: Connection, project_id: str) -> Row | None:
    """Lock a project: after outputs, before anything is inserted that refers to it."""
    return _read(fetch_one(conn, LOCK, {"id": project_id}))


def place_files(conn: Connection, project: Row, job_id: UUID, asset_base: str) -> None:
    """Give every published file of a job its placement in its locked project, and compute the document anew."""
    conn.execute(PLACE, {"job_id": job_id})
    update_image_urls(conn, project, asset_base)


def update_image_urls(conn: Connection, project: Row, asset_base: str) -> None:
    """
    Compute where a locked project's files belong and write its `imageUrls`.

    The document was read under the lock, so a concurrent writer's changes are kept and only `imageUrls` is ours.
    """
    placed = fetch_all(conn, LIST_PLACED, {"id": project["id"]})
    keys = scene_documents.find_scene_keys(project["document"], (row["scene"] for row in placed))
    for row, scene_key in zip(placed, keys, strict=True):
        if scene_key != row["scene_key"]:
            conn.execute(MOVE, {"render_id": row["render_id"], "idx": row["idx"], "scene_key": scene_key})
    changed = scene_documents.diff_image_urls(project["document"], _urls(zip(placed, keys, strict=True), asset_base))
    if changed:
        conn.execute(WRITE, {"id": project["id"], "urls": Jsonb({str(at): urls for at, urls in changed.items()})})
    conn.execute(SEAL, {"id": project["id"]})


OVERWRITTEN = """
SELECT id FROM projects WHERE computed_md5 IS DISTINCT FROM document_md5 ORDER BY id LIMIT %(limit)s
"""


def list_overwritten(conn: Connection, limit: int = 50) -> list[str]:
    """Return projects whose document somebody wrote since `imageUrls` was computed."""
    return [row["id"] for row in fetch_all(conn, OVERWRITTEN, {"limit": limit})]


GET = """
SELECT id, owner, document::text AS document, created_at, updated_at FROM projects WHERE id = %(id)s
"""


def get(conn: Connection, project_id: str) -> Row | None:
    """Return a project with its document."""
    return _read(fetch_one(conn, GET, {"id": project_id}))


def get_with_image_urls(conn: Connection, project_id: str, asset_base: str) -> Row | None:
    """
    Return a project with its document, `imageUrls` as they are to be, and `unplaced`: files that stand in no scene.

    They are computed here too, so that a document somebody has just overwritten is never shown as it was left.
    """
    project = get(conn, project_id)
    if project is None:
        return None
    placed = fetch_all(conn, LIST_PLACED, {"id": project_id})
    keys = scene_documents.find_scene_keys(project["document"], (row["scene"] for row in placed))
    document = scene_documents.replace_image_urls(
        project["document"], _urls(zip(placed, keys, strict=True), asset_base)
    )
    unplaced = [row for row, key in zip(placed, keys, strict=True) if key is None]
    return {**project, "document": document, "unplaced": unplaced}


def _read(row: Row | None) -> Row | None:
    return row and {**row, "document": scene_documents.parse_document(row["document"])}


def _urls(placed: Iterable[tuple[Row, str | None]], asset_base: str) -> dict[str, list[str]]:
    """Return the addresses of the files that stand in each scene."""
    urls: dict[str, list[str]] = defaultdict(list)
    for row, scene_key in placed:
        if scene_key is not None:
            urls[scene_key].append(f"{asset_base}/{row['key']}")
    return urls
