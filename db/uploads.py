"""Input files: rows of `uploads`, written after their object is stored and marked before it is deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from db.connection import Connection, Row, fetch_all, fetch_one
from moorage.model import Media


@dataclass(frozen=True, slots=True)
class Upload:
    """An input file as it is stored, freed of metadata: `bytes` and `sha256` are those of the object under `key`."""

    id: UUID
    owner: str
    key: str
    media: Media
    bytes: int
    sha256: str


ADD: Final = """
INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256, width_px, height_px, duration_s)
VALUES (%(id)s, %(owner)s, %(key)s, %(media)s, %(format)s, %(content_type)s, %(bytes)s, %(sha256)s, %(width_px)s,
        %(height_px)s, %(duration_s)s)
RETURNING created_at
"""


def add(conn: Connection, upload: Upload) -> datetime:
    """Record an upload whose object is stored; returns when."""
    media = upload.media
    row = fetch_one(
        conn,
        ADD,
        {
            "id": upload.id,
            "owner": upload.owner,
            "key": upload.key,
            "media": media.media,
            "format": media.format,
            "content_type": media.content_type,
            "bytes": upload.bytes,
            "sha256": upload.sha256,
            "width_px": media.width_px,
            "height_px": media.height_px,
            "duration_s": media.duration_s,
        },
    )
    made: datetime = row["created_at"] if row else None  # type: ignore[assignment]  # RETURNING brings a row
    return made


SHOW: Final = """
SELECT id, owner, key, media, format, content_type, bytes, sha256, width_px, height_px, duration_s, created_at
  FROM uploads WHERE id = %(id)s AND deleted_at IS NULL
"""


def get(conn: Connection, upload_id: UUID) -> Row | None:
    """Return an upload, None when there is none or it was deleted."""
    return fetch_one(conn, SHOW, {"id": upload_id})


DELETE: Final = """
UPDATE uploads SET deleted_at = moment() WHERE id = %(id)s AND deleted_at IS NULL RETURNING key
"""


def mark_deleted(conn: Connection, upload_id: UUID) -> str | None:
    """Mark an upload as deleted, so that no row names its object; returns the key, None when it was deleted before."""
    row = fetch_one(conn, DELETE, {"id": upload_id})
    return str(row["key"]) if row else None


OWNER: Final = "SELECT owner FROM uploads WHERE id = %(id)s"


def get_owner(conn: Connection, upload_id: UUID) -> str | None:
    """Return whose an upload is or was, None when there never was one."""
    row = fetch_one(conn, OWNER, {"id": upload_id})
    return str(row["owner"]) if row else None


OF_OWNER: Final = """
SELECT id, key, media, format, bytes, width_px, height_px
  FROM uploads WHERE id = ANY(%(ids)s::uuid[]) AND owner = %(owner)s AND deleted_at IS NULL
"""


def list_by_owner(conn: Connection, owner: str, ids: Sequence[UUID]) -> list[Row]:
    """Return those of some uploads that are an owner's and still there."""
    return fetch_all(conn, OF_OWNER, {"owner": owner, "ids": list(ids)})


VARIANTS: Final = """
SELECT v.render_id, v.idx, v.key, v.media, v.format, v.bytes, v.width_px, v.height_px
  FROM variants v
  JOIN unnest(%(renders)s::uuid[], %(idxs)s::integer[]) AS asked (render_id, idx)
    ON v.render_id = asked.render_id AND v.idx = asked.idx
 WHERE v.owner = %(owner)s
"""


def list_variants_by_owner(conn: Connection, owner: str, references: Sequence[tuple[UUID, int]]) -> list[Row]:
    """Return those of some published files that are an owner's and still shown, as inputs of another job."""
    args = {
        "owner": owner,
        "renders": [render_id for render_id, _ in references],
        "idxs": [idx for _, idx in references],
    }
    return fetch_all(conn, VARIANTS, args)


STORED: Final = """
SELECT id, key, bytes, sha256 FROM uploads
 WHERE key > %(after)s AND deleted_at IS NULL ORDER BY key LIMIT %(limit)s
"""


def list_upload_objects(conn: Connection, after: str, *, limit: int = 500) -> list[Row]:
    """Return uploads with their objects in the order of a listing, from behind a key."""
    return fetch_all(conn, STORED, {"after": after, "limit": limit})


SOME: Final = "SELECT id, key, bytes, sha256 FROM uploads WHERE id = ANY(%(ids)s::uuid[]) AND deleted_at IS NULL"


def get_upload_objects(conn: Connection, ids: Sequence[UUID]) -> list[Row]:
    """Return the objects of some uploads, as they are recorded now."""
    return fetch_all(conn, SOME, {"ids": list(ids)})
