"""Uploads: input files. The row is inserted after its object is stored and marked deleted before it is deleted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from db.connection import Connection, Row
from db.statements import statement
from moorage.model import Media


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored input file, metadata removed; `bytes` and `sha256` describe the object under `key`."""

    id: UUID
    owner: str
    key: str
    media: Media
    bytes: int
    sha256: str


@statement("""
INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256, width_px, height_px, duration_s)
VALUES (%(id)s, %(owner)s, %(key)s, %(media)s, %(format)s, %(content_type)s, %(bytes)s, %(sha256)s, %(width_px)s,
        %(height_px)s, %(duration_s)s)
RETURNING created_at
""")
def _add(conn: Connection, upload: Row, media: Media) -> datetime: ...


def add(conn: Connection, upload: Upload) -> datetime:
    return _add(conn, asdict(upload), upload.media)


_SELECT: Final = """
SELECT id, owner, key, media, format, content_type, bytes, sha256, width_px, height_px, duration_s, created_at
  FROM uploads WHERE deleted_at IS NULL"""


@statement(f"{_SELECT} AND id = %(upload_id)s")
def get(conn: Connection, upload_id: UUID) -> Row | None: ...


@statement(f"""{_SELECT} AND (%(owner)s::text IS NULL OR owner = ANY(ARRAY[%(owner)s]))
   AND (%(before)s::uuid IS NULL OR id < %(before)s)
 ORDER BY CASE WHEN %(owner)s::text IS NOT NULL THEN owner END DESC, id DESC LIMIT %(limit)s
""")
def list_page(conn: Connection, owner: str | None, before: UUID | None, limit: int) -> list[Row]: ...


@statement("UPDATE uploads SET deleted_at = moment() WHERE id = %(upload_id)s AND deleted_at IS NULL RETURNING key")
def mark_deleted(conn: Connection, upload_id: UUID) -> str | None:
    """Mark an upload as deleted, so that no row references its object; return the key, or None if it already was."""


@statement("SELECT owner FROM uploads WHERE id = %(upload_id)s")
def get_owner(conn: Connection, upload_id: UUID) -> str | None: ...


@statement("""
SELECT id, key, media, format, bytes, width_px, height_px
  FROM uploads WHERE id = ANY(%(ids)s::uuid[]) AND owner = %(owner)s AND deleted_at IS NULL
""")
def list_by_owner(conn: Connection, owner: str, ids: Sequence[UUID]) -> list[Row]: ...


@statement("""
SELECT v.render_id, v.idx, v.key, v.media, v.format, v.bytes, v.width_px, v.height_px
  FROM variants v
  JOIN unnest(%(render_ids)s::uuid[], %(idxs)s::integer[]) AS requested (render_id, idx)
    ON v.render_id = requested.render_id AND v.idx = requested.idx
 WHERE v.owner = %(owner)s
""")
def list_variants_by_owner(conn: Connection, owner: str, render_ids: Sequence[UUID], idxs: Sequence[int]) -> list[Row]:
    """Return those of the variants, by render id and idx, that belong to an owner and are published."""


# Retention: an upload stays while a live job may read it.
_BEFORE: Final = "moment() - make_interval(secs => %(seconds)s)"

OLD: Final = f"""
  FROM uploads u WHERE deleted_at IS NULL AND created_at < {_BEFORE}
   AND NOT EXISTS (SELECT FROM jobs j WHERE j.owner = u.owner AND j.state IN ('open', 'keeping')
                      AND strpos(j.fallback_chain::text, u.id::text) > 0)
"""

MARK_OLD: Final = f"""
WITH old AS MATERIALIZED (SELECT id {OLD} ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
UPDATE uploads u SET deleted_at = moment() FROM old WHERE u.id = old.id RETURNING u.key
"""


@statement(MARK_OLD)
def mark_old(conn: Connection, seconds: float, limit: int) -> list[str]:
    """Mark uploads as deleted that were stored more than `seconds` ago; return the keys of their objects."""
