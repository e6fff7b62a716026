"""Upgrades: a database of the first schema becomes what a fresh one is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db import migrate
from db.connection import Connection, connect
from embedded.stack import Stack

SCHEMA_0001 = Path(__file__).parents[1] / "corpus" / "schema_0001.sql"

# Everything that pg_catalog says of a schema, but for the order of columns.
CATALOG = {
    "columns": """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.attgenerated,
       pg_get_expr(d.adbin, d.adrelid) AS "default", col.collname
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
  LEFT JOIN pg_collation col ON col.oid = a.attcollation
 WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v', 'S')
""",
    "constraints": """
SELECT conrelid::regclass::text AS relname, conname, pg_get_constraintdef(oid) AS definition
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "functions": "SELECT proname, prosrc, provolatile FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}


def catalog(conn: Connection) -> dict[str, set[tuple[Any, ...]]]:
    return {name: {tuple(row.values()) for row in conn.execute(sql).fetchall()} for name, sql in CATALOG.items()}


@pytest.fixture
def old(stack: Stack) -> Iterator[Connection]:
    """Return a connection to a database of the first schema."""
    conn = connect(stack.postgres.create_database("moorage_upgrade"))
    migrate._execute(conn, SCHEMA_0001.read_text(encoding="utf-8"))
    conn.execute(migrate.RECORD, {"version": 1, "name": "schema.sql", "sha256": "schema.sql"})
    yield conn
    conn.close()
    stack.postgres.drop_database("moorage_upgrade")


def test_an_upgraded_schema_is_that_of_a_fresh_database(stack: Stack, old: Connection, template_database: str) -> None:
    """A statement planned against one would else fail on the other."""
    migrate.migrate(old)
    url = stack.postgres.create_database("moorage_upgrade_fresh", template=template_database)
    with connect(url) as fresh:
        expected = catalog(fresh)

    assert catalog(old) == expected
