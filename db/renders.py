"""Renders and their variants: the published results. Written in the one transaction that settles the job."""

from uuid import UUID

from db.connect import Connection, Row, many, one

PUBLISH = """
WITH made AS (
    INSERT INTO renders (id, owner, cover_idx)
    SELECT j.id, j.owner, (SELECT min(idx) FROM outputs WHERE job_id = j.id AND state = 'kept')
      FROM jobs j
     WHERE j.id = %(job_id)s AND EXISTS (SELECT FROM outputs WHERE job_id = j.id AND state = 'kept')
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
INSERT INTO events (subject, subject_id, job_id, to_state, actor)
SELECT 'render', id, id, 'published', %(actor)s FROM made
"""

ADD_VARIANTS = """
INSERT INTO render_variants (render_id, idx, output_id)
SELECT o.job_id, o.idx, o.id FROM outputs o JOIN renders r ON r.id = o.job_id
 WHERE o.job_id = %(job_id)s AND o.state = 'kept'
ON CONFLICT DO NOTHING
RETURNING idx
"""


def publish(conn: Connection, job_id: UUID, actor: str) -> list[int]:
    """Publish every kept output of a locked job that is not published yet; returns their idx."""
    conn.execute(PUBLISH, {"job_id": job_id, "actor": actor})
    return sorted(row["idx"] for row in many(conn, ADD_VARIANTS, {"job_id": job_id}))


EXISTS = "SELECT id FROM renders WHERE id = %(job_id)s"


def exists(conn: Connection, job_id: UUID) -> bool:
    """Return whether a job has published anything."""
    return one(conn, EXISTS, {"job_id": job_id}) is not None


IS_DELETED = "SELECT id FROM renders WHERE id = %(job_id)s AND deleted_at IS NOT NULL"


def is_deleted(conn: Connection, job_id: UUID) -> bool:
    """Return whether a job's render was deleted: nothing may be added to it any more."""
    return one(conn, IS_DELETED, {"job_id": job_id}) is not None


VARIANTS = """
SELECT idx, output_id, media, format, content_type, bytes, sha256, width_px, height_px, frames, duration_s, key,
       thumb_key, thumb_width_px, thumb_height_px, thumb_missing, is_cover
  FROM variants WHERE render_id = %(render_id)s ORDER BY idx
"""


def variants(conn: Connection, render_id: UUID) -> list[Row]:
    """Return the published files of a render."""
    return many(conn, VARIANTS, {"render_id": render_id})
