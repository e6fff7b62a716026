"""
Applies `schema.sql` to an empty database and numbered migrations to an older one; a second run does nothing.

`schema.sql` is the schema as it is now, at SCHEMA_VERSION. `db/migrations/NNNN_name.sql` brings an older database
there, one transaction a file. Several may run at once: the first holds a lock that ends with its transaction.
"""

import hashlib
from pathlib import Path
from typing import Final

import psycopg
from psycopg.rows import tuple_row

from db.connection import Connection, fetch_one
from moorage.errors import ConfigError
from moorage.failpoints import failpoint

ROOT: Final = Path(__file__).resolve().parent.parent
SCHEMA: Final = ROOT / "schema.sql"
MIGRATIONS: Final = ROOT / "db" / "migrations"
SCHEMA_VERSION: Final = 1

# Any constant serves; transaction-scoped, so PgBouncer does no harm.
LOCK = "SELECT pg_advisory_xact_lock(7239467113)"

IS_THERE = "SELECT to_regclass('schema_migrations') IS NOT NULL AS there"

APPLIED = "SELECT version, sha256 FROM schema_migrations ORDER BY version"

RECORD = "INSERT INTO schema_migrations (version, name, sha256) VALUES (%(version)s, %(name)s, %(sha256)s)"


def migrate(conn: Connection) -> list[str]:
    """
    Bring the database to the present schema and return the names of what was applied.

    Raises:
        ConfigError: an applied migration was changed afterwards, or the server is older than PostgreSQL 16.
    """
    if conn.info.server_version < 160000:
        raise ConfigError(f"PostgreSQL 16 or newer is needed; this server is {conn.info.server_version // 10000}")
    applied: list[str] = []
    while (name := _next(conn)) is not None:
        failpoint("migrate.after_commit")
        applied.append(name)
    return applied


def _next(conn: Connection) -> str | None:
    """Apply the next step in a transaction of its own; None when there is none."""
    with conn.transaction():
        conn.execute(LOCK)
        if not _is_there(conn):
            return _create(conn)
        known = {row["version"]: row["sha256"] for row in conn.execute(APPLIED).fetchall()}
        for version, path in list_migrations():
            text = path.read_text(encoding="utf-8")
            if version not in known:
                return _apply(conn, version, path.stem, text)
            if known[version] not in (_digest(text), "schema.sql"):
                raise ConfigError(f"{path.name} was changed after it had been applied: restore it, add a new migration")
    return None


def _create(conn: Connection) -> str:
    text = SCHEMA.read_text(encoding="utf-8")
    _execute(conn, text)
    for version in range(1, SCHEMA_VERSION + 1):
        conn.execute(RECORD, {"version": version, "name": "schema.sql", "sha256": "schema.sql"})
    failpoint("migrate.before_commit")
    return "schema.sql"


def _apply(conn: Connection, version: int, name: str, text: str) -> str:
    _execute(conn, text)
    conn.execute(RECORD, {"version": version, "name": name, "sha256": _digest(text)})
    failpoint("migrate.before_commit")
    return name


def _execute(conn: Connection, text: str) -> None:
    with psycopg.ClientCursor(conn, row_factory=tuple_row) as cursor:
        cursor.execute(text.encode())


def list_migrations() -> list[tuple[int, Path]]:
    """Return the migrations by number; 0001 is schema.sql itself as first released."""
    found = sorted(MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return [(int(path.name[:4]), path) for path in found]


def get_schema_version(conn: Connection) -> int:
    """Return the schema version of the database; 0 when it is empty."""
    if not _is_there(conn):
        return 0
    rows = conn.execute(APPLIED).fetchall()
    return max((int(row["version"]) for row in rows), default=0)


def require_current_schema(conn: Connection) -> None:
    """Refuse to run on an older schema; a newer one is fine."""
    found = get_schema_version(conn)
    if found < SCHEMA_VERSION:
        raise ConfigError(f"the database has schema {found}, this moorage needs {SCHEMA_VERSION}: run moorage migrate")


def _is_there(conn: Connection) -> bool:
    row = fetch_one(conn, IS_THERE, {})
    return bool(row and row["there"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
