"""Object keys and placements recorded in rows, for the audit and the orphan sweep."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from db.connection import Connection, Row, fetch_all
from db.statements import statement


# Whole jobs, by job id: keys begin with it, so this is the order of a bucket listing.
@statement("""
SELECT id, job_id, state, key, bytes, sha256, thumb_key, thumb_bytes, thumb_sha256 FROM outputs
 WHERE job_id > %(after)s AND key IS NOT NULL ORDER BY job_id FETCH FIRST %(limit)s ROWS WITH TIES
""")
def list_output_objects(conn: Connection, after: UUID, *, limit: int = 500) -> list[Row]:
    """Return outputs that have objects, ordered by job id, after a job; the last job is complete."""


@statement("""
SELECT id, job_id, state, key, bytes, sha256, thumb_key, thumb_bytes, thumb_sha256
  FROM outputs WHERE id = ANY(%(ids)s::uuid[]) AND key IS NOT NULL
""")
def get_output_objects(conn: Connection, ids: Sequence[UUID]) -> list[Row]: ...


@statement("""
SELECT id, quarantine_key AS key, quarantine_bytes AS bytes, quarantine_sha256 AS sha256 FROM outputs
 WHERE quarantine_key > %(after)s ORDER BY quarantine_key LIMIT %(limit)s
""")
def list_quarantined(conn: Connection, after: str, *, limit: int) -> list[Row]:
    """Return outputs with a file in quarantine, ordered by key, after a key."""


@statement("""
SELECT id, quarantine_key AS key, quarantine_bytes AS bytes, quarantine_sha256 AS sha256
  FROM outputs WHERE id = ANY(%(ids)s::uuid[]) AND quarantine_key IS NOT NULL
""")
def get_quarantined(conn: Connection, ids: Sequence[UUID]) -> list[Row]: ...


@statement("""
SELECT id FROM outputs TABLESAMPLE SYSTEM (least(100, 200 * 100.0 * %(limit)s / (SELECT greatest(reltuples, 1)
  FROM pg_class WHERE oid = 'outputs'::regclass))) WHERE state = 'kept' ORDER BY random() LIMIT %(limit)s
""")
def sample_kept_outputs(conn: Connection, limit: int) -> list[UUID]: ...


FIND_REFERENCED_KEYS: Final = """
SELECT key AS name FROM outputs WHERE key = ANY(%(keys)s::text[])
UNION ALL SELECT thumb_key FROM outputs WHERE thumb_key = ANY(%(keys)s::text[])
UNION ALL SELECT source FROM outputs WHERE source_kind = 'object' AND source = ANY(%(keys)s::text[])
UNION ALL SELECT quarantine_key FROM outputs WHERE quarantine_key = ANY(%(keys)s::text[])
UNION ALL SELECT key FROM uploads WHERE key = ANY(%(keys)s::text[]) AND deleted_at IS NULL
"""

LIST_LEASE_PREFIXES: Final = "SELECT left(lease_token::text, 8) AS name FROM outputs WHERE lease_token IS NOT NULL"


def find_referenced_keys(conn: Connection, keys: Sequence[str]) -> set[str]:
    return {row["name"] for row in fetch_all(conn, FIND_REFERENCED_KEYS, {"keys": list(keys)})}


def list_lease_prefixes(conn: Connection) -> set[str]:
    return {row["name"] for row in fetch_all(conn, LIST_LEASE_PREFIXES)}


LONG_TIMEOUT: Final = "SET LOCAL statement_timeout = '15min'"
