"""Projects and their documents."""

from collections.abc import Sequence

from psycopg.types.json import Jsonb

from db import placements
from db.connection import Connection, Row, fetch_one
from db.statements import statement
from moorage import scene_documents
from moorage.model import JobDescription, ProjectKey


def build_key_columns(key: str) -> str:
    """Return SQL for the owner and the id in a key as text, "owner/id" (`ProjectKey`); `key` is an expression."""
    return f"regexp_replace({key}, '/[^/]*$', ''), regexp_replace({key}, '^.*/', '')"


# CASE, because another program may have written a document of any shape.
_IS_SCENE_MISSING = """(p.is_implicit AND %(scenes)s::jsonb <> '[]' AND p.document - 'scenes' = '{}'
       AND CASE jsonb_typeof(p.document -> 'scenes')
           WHEN 'array' THEN jsonb_array_length(p.document -> 'scenes') < %(max_scenes)s
                         AND NOT EXISTS (SELECT FROM jsonb_array_elements(p.document -> 'scenes') s
                                          WHERE s ->> 'id' = %(scenes)s::jsonb -> 0 ->> 'id')
           ELSE false END)"""
ENSURE_OPEN = f"""
INSERT INTO projects AS p (owner, id, is_implicit, document)
SELECT %(owner)s, %(project_id)s, true, jsonb_build_object('scenes', %(scenes)s::jsonb) WHERE %(project_id)s::text <> ''
ON CONFLICT (owner, id) DO UPDATE SET status = 'open', document = CASE WHEN {_IS_SCENE_MISSING}
       THEN jsonb_set(p.document, '{{scenes}}', p.document -> 'scenes' || %(scenes)s::jsonb) ELSE p.document END
 WHERE p.status <> 'open' OR {_IS_SCENE_MISSING}
"""


def build_ensure_open(job: JobDescription) -> Row:
    """
    Return the parameters of ENSURE_OPEN: it creates the project of a new job if there is none, and sets it to `open`.

    While the application has written no document, the job's scene is added, so that its files have a place.
    """
    scenes = Jsonb([] if job.scene is None else [{"id": job.scene}])
    return {
        "owner": job.owner,
        "project_id": job.project_id,
        "scenes": scenes,
        "max_scenes": scene_documents.MAX_SCENES,
    }


@statement("""
INSERT INTO projects (id, owner, document) VALUES (%(id)s, %(owner)s, %(envelope)s::jsonb -> 'document')
ON CONFLICT (owner, id) DO NOTHING
RETURNING id
""")
def add(conn: Connection, project: ProjectKey, envelope: str) -> bool:
    """
    Insert a project with its document; return False if it exists.

    `envelope`: JSON text of an object with the document under `document`. PostgreSQL parses it, so that no number
    loses precision in this process.
    """


@statement("SELECT count(*) FROM projects WHERE owner = %(owner)s")
def count(conn: Connection, owner: str) -> int: ...


@statement("""
UPDATE projects SET updated_at = moment(), is_implicit = false,
       document = jsonb_set(document, '{scenes}', CASE jsonb_typeof(document -> 'scenes') WHEN 'array'
                            THEN document -> 'scenes' ELSE '[]' END
                            || jsonb_build_array(%(scene)s::jsonb || %(extra_fields)s))
 WHERE owner = %(owner)s AND id = %(id)s
RETURNING octet_length(document::text)
""")
def add_scene(conn: Connection, project: ProjectKey, scene: str, extra_fields: Jsonb) -> int:
    """Append a scene (JSON text), with `extra_fields` merged, to a locked project; return the document's size."""


@statement("""
UPDATE projects SET document = %(envelope)s::jsonb -> 'document', is_implicit = false, updated_at = moment()
 WHERE owner = %(owner)s AND id = %(id)s
""")
def replace_document(conn: Connection, project: ProjectKey, envelope: str) -> None:
    """Replace the document of a locked project; then `update_image_urls`. `envelope`: see `add`."""


# These statements write a document once, whatever the number of scenes: it may be 1 MB.
@statement("""
UPDATE projects SET updated_at = moment(), is_implicit = false,
       document = jsonb_set(document, '{scenes}', coalesce((
           SELECT jsonb_agg(s.scene ORDER BY s.n)
             FROM jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n)
            WHERE s.n - 1 <> ALL(%(positions)s::integer[])), '[]'))
 WHERE owner = %(owner)s AND id = %(id)s
""")
def remove_scenes(conn: Connection, project: ProjectKey, positions: Sequence[int]) -> None:
    """Remove scenes of a locked project by position, from 0."""


@statement("""
UPDATE projects SET updated_at = moment(), is_implicit = false,
       document = jsonb_set(document, '{scenes}', (
           SELECT jsonb_agg(s.scene ORDER BY o.target)
             FROM unnest(%(positions)s::integer[]) WITH ORDINALITY AS o (position, target)
             JOIN jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n) ON s.n = o.position + 1))
 WHERE owner = %(owner)s AND id = %(id)s
""")
def reorder_scenes(conn: Connection, project: ProjectKey, positions: Sequence[int]) -> None:
    """Reorder the scenes of a locked project. `positions`: a permutation of the current positions, not empty."""


IS_OVERWRITTEN = "computed_md5 IS DISTINCT FROM document_md5"
GET = f"""
SELECT id, owner, document::text AS document, created_at, updated_at, {IS_OVERWRITTEN} AS is_overwritten
  FROM projects WHERE owner = %(owner)s AND id = %(id)s
"""


def get(conn: Connection, project: ProjectKey, suffix: str = "") -> Row | None:
    row = fetch_one(conn, GET + suffix, project._asdict())
    return row and {**row, "document": scene_documents.parse_document(row["document"])}


def lock(conn: Connection, project: ProjectKey) -> Row | None:
    """Lock a project: after outputs, before inserting rows that reference it."""
    return get(conn, project, "FOR UPDATE")


@statement(f"""
SELECT owner, id FROM projects WHERE {IS_OVERWRITTEN}
 ORDER BY owner, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
""")
def list_overwritten(conn: Connection, limit: int = 50) -> list[ProjectKey]:
    """Return unlocked projects whose document another writer changed since `imageUrls` was computed."""


@statement("SELECT owner FROM projects WHERE id = %(project_id)s ORDER BY owner LIMIT %(limit)s")
def list_owners(conn: Connection, project_id: str, limit: int = 20) -> list[str]: ...


@statement("""
SELECT owner, id, status, created_at, updated_at FROM projects
 WHERE owner = %(owner)s AND id > %(after)s ORDER BY id LIMIT %(limit)s
""")
def list_page(conn: Connection, owner: str, after: str, limit: int) -> list[Row]: ...


LIST_LIVE_JOBS = """
SELECT id FROM jobs WHERE owner = %(owner)s AND project_id = %(id)s AND settled_at IS NULL LIMIT 1
"""
LOCK_JOBS = "SELECT id FROM jobs WHERE owner = %(owner)s AND project_id = %(id)s ORDER BY id FOR UPDATE"
DELETE_PLACEMENTS = "DELETE FROM placements WHERE owner = %(owner)s AND project_id = %(id)s"
DETACH_JOBS = "UPDATE jobs SET project_id = NULL, scene = NULL WHERE owner = %(owner)s AND project_id = %(id)s"
DELETE = "DELETE FROM projects WHERE owner = %(owner)s AND id = %(id)s"


def delete(conn: Connection, project: ProjectKey) -> bool | None:
    """
    Delete a project, not its renders: they belong to no project then. Return None if there is none, False if a job of
    it is not settled.

    Locks its jobs before the project, so that none is settled, reopened or created meanwhile.
    """
    key = project._asdict()
    conn.execute(LOCK_JOBS, key)
    if lock(conn, project) is None:
        return None
    if fetch_one(conn, LIST_LIVE_JOBS, key) is not None:
        return False
    for sql in (DELETE_PLACEMENTS, DETACH_JOBS, DELETE):
        conn.execute(sql, key)
    return True


def get_with_image_urls(conn: Connection, project: ProjectKey, asset_base: str) -> Row | None:
    """
    Return a project with its document, current `imageUrls`, and `unplaced`: the first 100 files without a scene.

    `imageUrls` is computed on read, so that a document just overwritten by another writer is returned correctly.
    """
    found = get(conn, project)
    if found is None:
        return None
    names = placements.list_scenes(conn, project)
    keys = scene_documents.find_scene_keys(found["document"], names)
    scenes = [Jsonb(name) for name, key in zip(names, keys, strict=True) if key is not None]
    placed = placements.list_placements(conn, project, scenes=scenes)
    placed_keys = scene_documents.find_scene_keys(found["document"], (row["scene"] for row in placed))
    document = scene_documents.replace_image_urls(
        found["document"], placements.group_urls_by_scene(zip(placed, placed_keys, strict=True), asset_base)
    )
    unplaced = placements.list_placements(conn, project, scenes=scenes, is_placed=False, limit=100)
    return {**found, "document": document, "unplaced": unplaced}
