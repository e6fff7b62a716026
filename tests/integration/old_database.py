"""A database of the first schema with rows in every state, as the code of commit 86f2b4b left them."""

import base64
import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from psycopg.types.json import Jsonb

from db import migrate
from db.connection import Connection
from storage.s3 import ObjectStore

CORPUS: Final = Path(__file__).parents[1] / "corpus"
UNCERTAIN_KEY: Final = "key-of-the-uncertain-submission"  # in its webhook URL

COLUMNS: Final = """
SELECT attname, atttypid = 'timestamptz'::regtype AS is_time FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0
"""


def create(conn: Connection) -> None:
    """Apply the first schema and insert the rows; their times are relative to now."""
    migrate._execute(conn, (CORPUS / "schema_0001.sql").read_text(encoding="utf-8"))
    conn.execute(migrate.RECORD, {"version": 1, "name": "schema.sql", "sha256": "schema.sql"})
    now = datetime.now(UTC)
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")  # foreign keys in any order
        for table, content in _corpus()["tables"].items():
            _insert(conn, table, content["columns"], content["rows"], now)
        conn.execute("SELECT setval('events_id_seq', (SELECT max(id) FROM events))")


def migrate_to(conn: Connection, version: int) -> None:
    """Apply the migrations up to a version, as the code of that version did."""
    for number, path in migrate.list_migrations():
        if migrate.get_schema_version(conn) < number <= version:
            with conn.transaction():
                migrate._apply(conn, number, path.stem, path.read_text(encoding="utf-8"))


def _insert(conn: Connection, table: str, columns: list[str], rows: list[list[Any]], now: datetime) -> None:
    times = {row["attname"] for row in conn.execute(COLUMNS, (table,)).fetchall() if row["is_time"]}

    def cell(column: str, value: Any) -> Any:
        return (now + timedelta(seconds=value)).isoformat() if column in times and value is not None else value

    records = [{name: cell(name, value) for name, value in zip(columns, row, strict=True)} for row in rows]
    names = ", ".join(columns)
    conn.execute(
        f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE"
        f" SELECT {names} FROM jsonb_populate_recordset(NULL::{table}, %s)".encode(),
        (Jsonb(records),),
    )


def store_objects(blobs: ObjectStore) -> None:
    """Store the objects that the rows name."""
    for name, text in _corpus()["objects"].items():
        bucket, _, key = name.partition("/")
        data = base64.b64decode(text)
        blobs.put(
            blobs.public_bucket if bucket == "public" else blobs.private_bucket,
            key,
            io.BytesIO(data),
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            content_type="image/webp" if key.endswith("webp") else "image/png",
        )


def _corpus() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CORPUS / "rows_0001.json").read_text(encoding="utf-8"))
    return loaded
