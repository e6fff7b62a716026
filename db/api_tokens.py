"""API tokens: who may use the API beside the bearer of MOORAGE_API_TOKEN. A token stands nowhere, only its hash."""

import hashlib
import secrets
from typing import Final, Literal, cast
from uuid import UUID

from db.connection import Connection, Row, fetch_all, fetch_one
from moorage import ids

Role = Literal["application", "admin"]

PREFIX: Final = "mrt_"

ADD = """
INSERT INTO api_tokens (id, name, role, token_sha256) VALUES (%(id)s, %(name)s, %(role)s, %(token_sha256)s)
RETURNING id, name, role, created_at, revoked_at
"""


def create(conn: Connection, name: str, role: Role) -> tuple[Row, str]:
    """Insert a token and return its row and the token itself, which can never be read again."""
    token = PREFIX + secrets.token_urlsafe(32)
    args = {"id": ids.uuid7(), "name": name, "role": role, "token_sha256": _sha256(token)}
    return cast(Row, fetch_one(conn, ADD, args)), token


FIND = "SELECT role FROM api_tokens WHERE token_sha256 = %(token_sha256)s AND revoked_at IS NULL"


def get_role(conn: Connection, token: str) -> Role | None:
    """Return what a token allows; None when it is none of ours, or was revoked."""
    row = fetch_one(conn, FIND, {"token_sha256": _sha256(token)})
    return cast(Role, row["role"]) if row else None


ALL = "SELECT id, name, role, created_at, revoked_at FROM api_tokens ORDER BY id LIMIT 1000"


def list_tokens(conn: Connection) -> list[Row]:
    """Return what is known of every token, the oldest first."""
    return fetch_all(conn, ALL)


REVOKE = """
UPDATE api_tokens SET revoked_at = moment() WHERE id = %(id)s AND revoked_at IS NULL
RETURNING id, name, role, created_at, revoked_at
"""


def revoke(conn: Connection, token_id: UUID) -> Row | None:
    """End a token from its next request on; None when there is none that lives."""
    return fetch_one(conn, REVOKE, {"id": token_id})


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
