"""Placements of published files in a project's scenes, and the `imageUrls` computed from them (rule 9)."""

from collections import defaultdict
from collections.abc import Iterable

from psycopg.types.json import Jsonb

from db.connection import Connection, Row
from db.statements import statement
from moorage import scene_documents
from moorage.model import Job, ProjectKey, SceneRef

ADD_PLACEMENTS = """
INSERT INTO placements (render_id, idx, owner, project_id, scene, scene_key)
SELECT v.render_id, v.idx, j.owner, j.project_id, j.scene, %(scene_key)s
  FROM render_variants v JOIN jobs j ON j.id = v.render_id
 WHERE v.render_id = %(job_id)s AND j.project_id IS NOT NULL
ON CONFLICT DO NOTHING
"""

SET_SCENE_KEY = """
UPDATE placements SET scene_key = %(scene_key)s
 WHERE render_id = %(render_id)s AND idx = %(idx)s AND scene_key IS DISTINCT FROM %(scene_key)s
"""

# Writes only imageUrls, by scene position: the rest of the document never passes through this process.
SET_IMAGE_URLS = """
UPDATE projects SET document = jsonb_set(document, '{scenes}', (
           SELECT jsonb_agg(CASE WHEN w.value IS NULL THEN s.scene
                                 ELSE s.scene || jsonb_build_object('imageUrls', w.value) END ORDER BY s.n)
             FROM jsonb_array_elements(document -> 'scenes') WITH ORDINALITY AS s (scene, n)
             LEFT JOIN jsonb_each(%(urls)s::jsonb) AS w ON w.key = (s.n - 1)::text))
 WHERE owner = %(owner)s AND id = %(id)s
"""

SET_COMPUTED_MD5 = """
UPDATE projects SET computed_md5 = document_md5, updated_at = moment()
 WHERE owner = %(owner)s AND id = %(id)s AND computed_md5 IS DISTINCT FROM document_md5
"""


@statement("""
SELECT p.render_id, p.idx, p.scene, p.scene_key, v.key, v.media FROM placements p JOIN variants v USING (render_id, idx)
 WHERE p.owner = %(owner)s AND p.project_id = %(id)s
   AND (%(scene_keys)s::text[] IS NULL OR p.scene_key = ANY(%(scene_keys)s))
   AND (%(scenes)s::jsonb[] IS NULL OR coalesce(p.scene = ANY(%(scenes)s), false) = %(is_placed)s)
 ORDER BY p.render_id, p.idx LIMIT %(limit)s
""")
def list_placements(
    conn: Connection, project: ProjectKey, scene_keys: list[str] | None = None, *, scenes: list[Jsonb] | None = None,
    is_placed: bool = True, limit: int | None = None
) -> list[Row]:  # fmt: skip
    """Return files of a project: all, or by their recorded keys, or by what jobs name (not `is_placed`: all others)."""


@statement("SELECT DISTINCT scene FROM placements WHERE owner = %(owner)s AND project_id = %(id)s")
def list_scenes(conn: Connection, project: ProjectKey) -> list[SceneRef | None]:
    """Return what the jobs of a project's files name as their scene."""


def place_files(conn: Connection, project: Row, job: Job, asset_base: str) -> None:
    """Insert placements for a job's published files in its locked project, and update the document."""
    (scene_key,) = scene_documents.find_scene_keys(project["document"], [job.scene])
    conn.execute(ADD_PLACEMENTS, {"job_id": job.id, "scene_key": scene_key})
    update_scene(conn, project, job.scene, asset_base)


def update_scene(conn: Connection, project: Row, scene: SceneRef | None, asset_base: str) -> None:
    """Update a locked project's document after files of one scene changed; others are read if it was overwritten."""
    (scene_key,) = scene_documents.find_scene_keys(project["document"], [scene])
    if project["is_overwritten"]:
        update_image_urls(conn, project, asset_base)
    elif scene_key is not None:
        update_image_urls(conn, project, asset_base, scene_key)


def update_image_urls(conn: Connection, project: Row, asset_base: str, scene_key: str | None = None) -> None:
    """
    Recompute the placements of a locked project's files, or of the scenes with one key, and write its `imageUrls`.

    The document was read under the lock, so changes of other writers are preserved.
    """
    key, document = ProjectKey(project["owner"], project["id"]), project["document"]
    scenes = scene_documents.find_scenes_of_key(document, scene_key) if scene_key is not None else None
    placed = list_placements(conn, key, None if scenes is None else [one for keys in scenes.values() for one in keys])
    keys = scene_documents.find_scene_keys(document, (row["scene"] for row in placed))
    for row, new_key in zip(placed, keys, strict=True):
        if new_key != row["scene_key"]:
            conn.execute(SET_SCENE_KEY, {"render_id": row["render_id"], "idx": row["idx"], "scene_key": new_key})
    urls = group_urls_by_scene(zip(placed, keys, strict=True), asset_base)
    changed = {str(at): new for at, new in scene_documents.diff_image_urls(document, urls).items()
               if scenes is None or at in scenes}  # fmt: skip
    if changed:
        conn.execute(SET_IMAGE_URLS, {**key._asdict(), "urls": Jsonb(changed)})
    conn.execute(SET_COMPUTED_MD5, key._asdict())


def group_urls_by_scene(placed: Iterable[tuple[Row, str | None]], asset_base: str) -> dict[str, list[str]]:
    """Return the URLs of the images and videos of each scene; other files are not among its `imageUrls`."""
    urls: dict[str, list[str]] = defaultdict(list)
    for row, scene_key in placed:
        if scene_key is not None and row["media"] != "file":
            urls[scene_key].append(f"{asset_base}/{row['key']}")
    return urls
