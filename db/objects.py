"""Object keys and placements recorded in rows, for the audit and the orphan sweep."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from db.connection import Connection, Row, fetch_all
from db.statements import statement

# Objects that rows name: id, key, bytes, sha256, is_required (False for a discarded output, whose object may be deleted
# already), and place: what follows is on the next page. The key is null if it is not below that of its job.
_OUTPUTS: Final = """
SELECT id, object.key, object.bytes, object.sha256, state = 'kept' AS is_required, 'renders/' || job_id || '0' AS place
  FROM outputs LEFT JOIN LATERAL (
       VALUES (outputs.key, outputs.bytes, outputs.sha256), (thumb_key, thumb_bytes, thumb_sha256)
       ) AS object (key, bytes, sha256) ON starts_with(object.key, 'renders/' || job_id || '/')
 WHERE outputs.key IS NOT NULL"""
_UPLOADS: Final = """
SELECT id, key, bytes, sha256, true AS is_required, key AS place FROM uploads WHERE deleted_at IS NULL"""
_QUARANTINED: Final = """
SELECT id, quarantine_key AS key, quarantine_bytes AS bytes, quarantine_sha256 AS sha256, true AS is_required,
       quarantine_key AS place
  FROM outputs WHERE quarantine_key IS NOT NULL"""

# In the order of the listing of their bucket: of outputs whole jobs, as their keys begin with the job's id.
LIST_OBJECTS: Final[Mapping[str, str]] = {
    "objects": f"""{_OUTPUTS} AND job_id > coalesce(nullif(substr(%(after)s, 9, 36), ''), '{UUID(int=0)}')::uuid
 ORDER BY job_id FETCH FIRST %(limit)s ROWS WITH TIES""",
    "uploads": f"{_UPLOADS} AND key > %(after)s ORDER BY key LIMIT %(limit)s",
    "quarantine": f"{_QUARANTINED} AND quarantine_key > %(after)s ORDER BY quarantine_key LIMIT %(limit)s",
}
GET_OBJECTS: Final[Mapping[str, str]] = {
    "objects": f"{_OUTPUTS} AND id = ANY(%(ids)s::uuid[])",
    "uploads": f"{_UPLOADS} AND id = ANY(%(ids)s::uuid[])",
    "quarantine": f"{_QUARANTINED} AND id = ANY(%(ids)s::uuid[])",
}


def list_objects(conn: Connection, scope: str, after: str, *, limit: int = 500) -> list[Row]:
    """Return the objects that a page of rows names, after a place ("" for the first page); none of other scopes."""
    return fetch_all(conn, LIST_OBJECTS[scope], {"after": after, "limit": limit}) if scope in LIST_OBJECTS else []


def get_objects(conn: Connection, scope: str, ids: Sequence[UUID]) -> list[Row]:
    return fetch_all(conn, GET_OBJECTS[scope], {"ids": list(ids)}) if scope in GET_OBJECTS else []


@statement("""
SELECT id FROM outputs TABLESAMPLE SYSTEM (least(100, 200 * 100.0 * %(limit)s / (SELECT greatest(reltuples, 1)
  FROM pg_class WHERE oid = 'outputs'::regclass))) WHERE state = 'kept' ORDER BY random() LIMIT %(limit)s
""")
def sample_kept_outputs(conn: Connection, limit: int) -> list[UUID]: ...


@statement("""
SELECT key FROM outputs WHERE key = ANY(%(keys)s::text[])
UNION ALL SELECT thumb_key FROM outputs WHERE thumb_key = ANY(%(keys)s::text[])
UNION ALL SELECT source FROM outputs WHERE source_kind = 'object' AND source = ANY(%(keys)s::text[])
UNION ALL SELECT quarantine_key FROM outputs WHERE quarantine_key = ANY(%(keys)s::text[])
UNION ALL SELECT key FROM uploads WHERE key = ANY(%(keys)s::text[]) AND deleted_at IS NULL
""")
def find_referenced_keys(conn: Connection, keys: Sequence[str]) -> set[str]: ...


@statement("SELECT left(lease_token::text, 8) FROM outputs WHERE lease_token IS NOT NULL")
def list_lease_prefixes(conn: Connection) -> set[str]: ...


LONG_TIMEOUT: Final = "SET LOCAL statement_timeout = '15min'"
