"""Renders and their variants: published results, written in the transaction that settles the job."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from db.connection import Connection, Row
from db.events import build_event_insert
from db.statements import statement
from moorage.model import Job

PUBLISH = f"""
WITH moved AS (
    INSERT INTO renders (id, owner, cover_idx)
    SELECT j.id, j.owner,
           (SELECT idx FROM outputs WHERE job_id = j.id AND state = 'kept' AND media <> 'file'
             ORDER BY is_placeholder, idx LIMIT 1)
      FROM jobs j WHERE j.id = %(job_id)s AND EXISTS (SELECT FROM outputs WHERE job_id = j.id AND state = 'kept')
    ON CONFLICT (id) DO NOTHING
    RETURNING id
) {build_event_insert("render", "NULL", "'published'", job_id="id")} /* planned */
"""

ADD_VARIANTS = """
INSERT INTO render_variants (render_id, idx, output_id)
SELECT o.job_id, o.idx, o.id FROM outputs o JOIN renders r ON r.id = o.job_id
 WHERE o.job_id = %(job_id)s AND o.state = 'kept'
ON CONFLICT DO NOTHING /* planned */
"""

# A cover stays, unless it is a placeholder, or there was no image or video before.
REPLACE_COVER = f"""
WITH moved AS (
    UPDATE renders r SET cover_idx = next.idx
      FROM (SELECT (SELECT v.idx FROM render_variants v JOIN outputs o ON o.id = v.output_id
                     WHERE v.render_id = %(job_id)s AND NOT o.is_placeholder AND o.media <> 'file'
                     ORDER BY v.idx LIMIT 1) AS idx
             WHERE EXISTS (SELECT FROM render_variants v JOIN outputs o ON o.id = v.output_id
                            WHERE v.render_id = %(job_id)s AND NOT o.is_placeholder)) next
     WHERE r.id = %(job_id)s AND r.deleted_at IS NULL AND r.cover_idx IS DISTINCT FROM next.idx
       AND (r.cover_idx IS NULL
            OR EXISTS (SELECT FROM render_variants v JOIN outputs o ON o.id = v.output_id
                        WHERE v.render_id = r.id AND v.idx = r.cover_idx AND o.is_placeholder))
    RETURNING r.id
) {build_event_insert("render", "'published'", "'published'", "'its cover is the first image or video'", job_id="id")}
"""


def publish(conn: Connection, job: Job, actor: str) -> None:
    """Publish a locked job's kept outputs that are not published yet, and set the cover."""
    args = {"job_id": job.id, "actor": actor}
    conn.queue(PUBLISH, args)
    conn.queue(ADD_VARIANTS, args)
    if job.reopened:  # else it has no render yet
        conn.queue(REPLACE_COVER, args)


@statement("SELECT id FROM renders WHERE id = %(job_id)s")
def exists(conn: Connection, job_id: UUID) -> bool: ...


@statement("SELECT id FROM renders WHERE id = %(job_id)s AND deleted_at IS NOT NULL")
def is_deleted(conn: Connection, job_id: UUID) -> bool: ...


def list_variants(conn: Connection, render_id: UUID) -> list[Row]:
    return list_variants_of_renders(conn, [render_id])


@statement("""
SELECT render_id, idx, output_id, media, format, content_type, bytes, sha256, width_px, height_px, frames, duration_s,
       key, thumb_key, thumb_width_px, thumb_height_px, thumb_missing, color, is_placeholder, is_cover
  FROM variants WHERE render_id = ANY(%(render_ids)s::uuid[]) ORDER BY render_id, idx
""")
def list_variants_of_renders(conn: Connection, render_ids: Sequence[UUID]) -> list[Row]: ...


_PUBLISHED = """
SELECT r.id, r.owner, r.cover_idx, r.title, r.favourite, r.published_at, j.kind, j.mode, j.room_type, j.style,
       j.prompt, j.project_id, j.scene, j.metadata, j.state, j.category, j.reason, j.created_at, j.settled_at
  FROM renders r JOIN jobs j ON j.id = r.id WHERE r.deleted_at IS NULL
"""


# By id, in the order of job creation. A published job has another state only if it was reopened: failed ones are many.
@statement(f"""{_PUBLISHED}
   AND (%(owner)s::text IS NULL OR r.owner = ANY(ARRAY[%(owner)s]))
   AND (%(kind)s::text IS NULL OR j.kind = %(kind)s)
   AND (%(state)s::text IS NULL OR j.state = %(state)s)
   AND (coalesce(%(state)s, 'succeeded') IN ('succeeded', 'partial') OR j.reopened > 0)
   AND (%(style)s::text IS NULL OR j.style = %(style)s)
   AND (%(project_id)s::text IS NULL OR j.project_id = %(project_id)s)
   AND (%(before)s::uuid IS NULL OR r.id < %(before)s)
 ORDER BY CASE WHEN %(owner)s::text IS NOT NULL THEN r.owner END DESC, r.id DESC LIMIT %(limit)s
""")
def list_page(conn: Connection, filters: Mapping[str, Any], limit: int) -> list[Row]:
    """Return published renders, newest job first; `filters` has owner, kind, state, style, project_id and before."""


@statement(f"{_PUBLISHED} AND r.id = %(render_id)s")
def get_published(conn: Connection, render_id: UUID) -> Row | None: ...


@statement("""
UPDATE renders r SET title = CASE WHEN %(set_title)s THEN %(title)s ELSE title END,
       favourite = coalesce(%(favourite)s, favourite), cover_idx = coalesce(%(cover_idx)s, cover_idx)
 WHERE id = %(render_id)s AND deleted_at IS NULL
   AND (%(cover_idx)s::integer IS NULL
        OR EXISTS (SELECT FROM variants v WHERE v.render_id = r.id AND v.idx = %(cover_idx)s AND v.media <> 'file'))
RETURNING id
""")
def _update(conn: Connection, render_id: UUID, fields: Mapping[str, Any]) -> bool: ...


def update(conn: Connection, render_id: UUID, fields: Mapping[str, Any]) -> bool:
    """Change what `fields` names (title, favourite, cover_idx); False: not found, or not its picture."""
    unchanged = {"title": None, "favourite": None, "cover_idx": None, "set_title": "title" in fields}
    return _update(conn, render_id, unchanged | dict(fields))


@statement("""
SELECT idx, media, key, content_type, bytes, sha256, thumb_key, thumb_bytes, thumb_sha256
  FROM variants WHERE render_id = %(render_id)s AND (%(idx)s::integer IS NULL OR idx = %(idx)s)
 ORDER BY media = 'file', idx LIMIT 1
""")
def get_file(conn: Connection, render_id: UUID, idx: int | None) -> Row | None:
    """Return a variant; without `idx` the first image or video, if the render has one."""
