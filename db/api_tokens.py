"""API tokens in addition to MOORAGE_API_TOKEN. Only the hash of a token is stored."""

import hashlib
import secrets
from typing import Final, Literal
from uuid import UUID

from db.connection import Connection, Row
from db.statements import statement
from moorage import ids

Role = Literal["application", "viewer", "admin"]

PREFIX: Final = "mrt_"


@statement("""
INSERT INTO api_tokens (id, name, role, token_sha256) VALUES (%(new_id)s, %(name)s, %(role)s, %(token_sha256)s)
RETURNING id, name, role, created_at, revoked_at
""")
def _add(conn: Connection, new_id: UUID, name: str, role: Role, token_sha256: str) -> Row: ...


def create(conn: Connection, name: str, role: Role) -> tuple[Row, str]:
    """Create a token; return its row and the token itself, which cannot be retrieved later."""
    token = PREFIX + secrets.token_urlsafe(32)
    return _add(conn, ids.uuid7(), name, role, _sha256(token)), token


@statement("SELECT id, name, role FROM api_tokens WHERE token_sha256 = %(token_sha256)s AND revoked_at IS NULL")
def _get_active(conn: Connection, token_sha256: str) -> Row | None: ...


def get_active(conn: Connection, token: str) -> Row | None:
    """Return the id, the name and the role of a token, or None if it is unknown or revoked."""
    return _get_active(conn, _sha256(token))


@statement("SELECT id FROM api_tokens WHERE id = ANY(%(token_ids)s::uuid[]) AND revoked_at IS NULL")
def filter_active(conn: Connection, token_ids: list[UUID]) -> set[UUID]: ...


@statement("SELECT id, name, role, created_at, revoked_at FROM api_tokens ORDER BY id LIMIT 1000")
def list_tokens(conn: Connection) -> list[Row]: ...


@statement("""
UPDATE api_tokens SET revoked_at = moment() WHERE id = %(token_id)s AND revoked_at IS NULL
RETURNING id, name, role, created_at, revoked_at
""")
def revoke(conn: Connection, token_id: UUID) -> Row | None: ...


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
