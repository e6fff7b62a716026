"""What an audit compares storage and documents with: the objects that rows name, and placements."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from db.connection import Connection, Row, fetch_all
from db.projects import LIST_PLACED

# By job, whole jobs: their keys begin with the job's id, so that this is the order of a listing.
OBJECTS: Final = """
SELECT id, job_id, state, key, bytes, sha256, thumb_key, thumb_bytes, thumb_sha256
  FROM outputs
 WHERE job_id > %(after)s AND key IS NOT NULL
 ORDER BY job_id FETCH FIRST %(limit)s ROWS WITH TIES
"""


def list_output_objects(conn: Connection, after: UUID, *, limit: int = 500) -> list[Row]:
    """Return outputs with objects, of whole jobs, in the order of their jobs, from behind one."""
    return fetch_all(conn, OBJECTS, {"after": after, "limit": limit})


OBJECT: Final = """
SELECT id, job_id, state, key, bytes, sha256, thumb_key, thumb_bytes, thumb_sha256
  FROM outputs WHERE id = ANY(%(ids)s::uuid[]) AND key IS NOT NULL
"""


def get_output_objects(conn: Connection, ids: Sequence[UUID]) -> list[Row]:
    """Return the objects of some outputs, as they are recorded now."""
    return fetch_all(conn, OBJECT, {"ids": list(ids)})


NAMED: Final = """
SELECT key AS name FROM outputs WHERE key = ANY(%(keys)s::text[])
UNION ALL SELECT thumb_key FROM outputs WHERE thumb_key = ANY(%(keys)s::text[])
UNION ALL SELECT source FROM outputs WHERE source_kind = 'object' AND source = ANY(%(keys)s::text[])
UNION ALL SELECT key FROM uploads WHERE key = ANY(%(keys)s::text[]) AND deleted_at IS NULL
"""

LEASED: Final = "SELECT left(lease_token::text, 8) AS name FROM outputs WHERE lease_token IS NOT NULL"


def find_referenced_keys(conn: Connection, keys: Sequence[str]) -> set[str]:
    """Return those of some keys that a row names."""
    return {row["name"] for row in fetch_all(conn, NAMED, {"keys": list(keys)})}


def list_lease_prefixes(conn: Connection) -> set[str]:
    """Return the first 8 digits of every live lease of an output."""
    return {row["name"] for row in fetch_all(conn, LEASED)}


def list_placements(conn: Connection, project_id: str) -> list[Row]:
    """Return the placements of a project in their order: render_id, idx, scene, scene_key, key."""
    return fetch_all(conn, LIST_PLACED, {"id": project_id})


LONG_TIMEOUT: Final = "SET LOCAL statement_timeout = '15min'"
