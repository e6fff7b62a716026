"""
Applies `schema.sql` to an empty database and numbered migrations to an older one.

`schema.sql` is the current schema, at SCHEMA_VERSION. `db/migrations/NNNN_name.sql` migrates an older database, one
transaction a file. An advisory lock serializes concurrent runs; a repeated run does nothing.
"""

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from db import lock_holders
from db.connection import Connection, Row, connect, fetch_all
from db.statements import statement
from moorage import logs
from moorage.errors import ConfigError, DatabaseLocked
from moorage.failpoints import failpoint

log = logs.get_logger(__name__)

SCHEMA: Final = Path(__file__).with_name("schema.sql")  # a link to the one in the root of the repository
MIGRATIONS: Final = Path(__file__).with_name("migrations")
SCHEMA_VERSION: Final = 25

# An arbitrary constant. Transaction-scoped, because of PgBouncer in transaction mode.
LOCK = "SELECT pg_advisory_xact_lock(7239467113)"

# Every other statement on a table queues behind one of a migration that waits for it.
LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '2s'"
PAUSE_SECONDS: Final = 3.0
LOCKED_SECONDS: Final = 120.0

APPLIED = "SELECT version, sha256 FROM schema_migrations ORDER BY version"

# After these an older process would fail, so they wait until none works; 2 does so itself, before it renames a table.
NOT_ADDITIVE: Final = (12,)
LOCK_ROWS = "LOCK TABLE deliveries, jobs, predictions, outputs, notifications IN ACCESS EXCLUSIVE MODE"  # as rows are
HOLDERS = " UNION ".join(
    f"SELECT split_part(leased_by, '/', 1) AS name FROM {table}"
    " WHERE lease_token IS NOT NULL AND leased_until > moment()"
    for table in ("deliveries", "predictions", "outputs", "notifications")
)

RECORD = "INSERT INTO schema_migrations (version, name, sha256) VALUES (%(version)s, %(name)s, %(sha256)s)"


def migrate(conn: Connection) -> list[str]:
    """
    Migrate the database to the current schema; return the names of the files applied.

    Raises ConfigError if an applied file was changed, a migration refused (an older worker holds a lease), a table is
    locked for two minutes, or the server is older than PostgreSQL 16.
    """
    if conn.info.server_version < 160000:
        raise ConfigError(f"PostgreSQL 16 or newer is required; this server is {conn.info.server_version // 10000}")
    applied: list[str] = []
    while (name := _apply_unless_locked(conn)) is not None:
        failpoint("migrate.after_commit")
        applied.append(name)
    return applied


def _apply_unless_locked(conn: Connection) -> str | None:
    """Apply the next file in its own transaction, repeated while a table is locked; return its name, or None."""
    until = 0.0
    url = make_conninfo(conn.info.dsn, password=conn.info.password)
    with contextlib.closing(connect(url, name="moorage-migrate-locks")) as observer:
        while True:
            holders: list[Row] = []
            try:
                with conn.transaction():
                    conn.execute(LOCK)
                    conn.execute(LOCK_TIMEOUT)
                    with lock_holders.watch(conn, observer) as holders:  # not while another run holds LOCK
                        return _apply_next(conn)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                locked = lock_holders.explain(DatabaseLocked("locked by another transaction"), holders)
                until = until or time.monotonic() + LOCKED_SECONDS  # from the first: another run may take longer
                if time.monotonic() > until:
                    raise ConfigError(f"a table is {locked}: end that, or run moorage migrate later") from error
                log.warning("migrate.locked", reason=str(locked))
            time.sleep(PAUSE_SECONDS)


def _apply_next(conn: Connection) -> str | None:
    """Apply the next file and return its name, or None if there is none."""
    if not _has_schema(conn):
        return _create_schema(conn)
    known = {row["version"]: row["sha256"] for row in conn.execute(APPLIED).fetchall()}
    for version, path in list_migrations():
        text = path.read_text(encoding="utf-8")
        if version not in known:
            return _apply(conn, version, path.stem, text)
        if known[version] not in (_digest(text), "schema.sql"):
            raise ConfigError(f"{path.name} was changed after it was applied: restore it and add a new migration")
    return None


def _create_schema(conn: Connection) -> str:
    _execute(conn, SCHEMA.read_text(encoding="utf-8"))
    for version in range(1, SCHEMA_VERSION + 1):
        conn.execute(RECORD, {"version": version, "name": "schema.sql", "sha256": "schema.sql"})
    failpoint("migrate.before_commit")
    return "schema.sql"


def _apply(conn: Connection, version: int, name: str, text: str) -> str:
    if version in NOT_ADDITIVE:
        _require_no_lease(conn, name)
    try:
        _execute(conn, text)
    except psycopg.errors.RaiseException as error:  # the migration's own condition does not hold
        raise ConfigError(f"{name} is not applied: {error.diag.message_primary}") from error
    conn.execute(RECORD, {"version": version, "name": name, "sha256": _digest(text)})
    failpoint("migrate.before_commit")
    return name


def _require_no_lease(conn: Connection, name: str) -> None:
    conn.execute(LOCK_ROWS)
    if holders := ", ".join(row["name"] for row in fetch_all(conn, HOLDERS)):
        reason = f"rows are leased by {holders} of the previous version: stop its processes, then run"
        raise ConfigError(f"{name} is not applied: {reason} moorage migrate again")


def _execute(conn: Connection, text: str) -> None:
    with psycopg.ClientCursor(conn, row_factory=tuple_row) as cursor:
        cursor.execute(text.encode())


def list_migrations() -> list[tuple[int, Path]]:
    return [(int(path.name[:4]), path) for path in sorted(MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))]


def get_schema_version(conn: Connection) -> int:
    """Return the schema version of the database; 0 if it is empty."""
    if not _has_schema(conn):
        return 0
    rows = conn.execute(APPLIED).fetchall()
    return max((int(row["version"]) for row in rows), default=0)


def require_current_schema(conn: Connection) -> None:
    """Raise ConfigError if the schema is older than this version needs; a newer one is accepted."""
    version = get_schema_version(conn)
    if version < SCHEMA_VERSION:
        raise ConfigError(f"database schema {version} is older than {SCHEMA_VERSION}: run moorage migrate")


@statement("SELECT 1 WHERE to_regclass('schema_migrations') IS NOT NULL")
def _has_schema(conn: Connection) -> bool: ...


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
