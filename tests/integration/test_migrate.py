"""Migrations: the schema is applied once, however often and by however many."""

from collections.abc import Iterator

import pytest

from db import migrate
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.errors import ConfigError
from tests.integration.core import together


@pytest.fixture
def empty(stack: Stack) -> Iterator[str]:
    yield stack.postgres.create_database("moorage_migrate")
    stack.postgres.drop_database("moorage_migrate")


@pytest.fixture
def bare(empty: str) -> Iterator[Connection]:
    conn = connect(empty)
    yield conn
    conn.close()


def test_an_empty_database_gets_the_schema_once(bare: Connection) -> None:
    """Running it twice does nothing more."""
    assert migrate.get_schema_version(bare) == 0
    assert migrate.migrate(bare)[0] == "schema.sql"

    assert migrate.migrate(bare) == []
    assert migrate.get_schema_version(bare) == migrate.SCHEMA_VERSION


def test_four_at_once_apply_it_once(empty: str) -> None:
    """Every container of a deployment runs it."""
    applied: list[str] = []

    def run() -> None:
        conn = connect(empty)
        applied.extend(migrate.migrate(conn))
        conn.close()

    together(*[run] * 4)

    assert applied.count("schema.sql") == 1


def test_a_process_refuses_an_older_schema_and_runs_on_a_newer(bare: Connection) -> None:
    """During a deployment old processes run on the new schema, never the reverse."""
    with pytest.raises(ConfigError, match="run moorage migrate"):
        migrate.require_current_schema(bare)
    migrate.migrate(bare)
    migrate.require_current_schema(bare)

    bare.execute("INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'later', 'x')")

    migrate.require_current_schema(bare)


def test_an_applied_migration_that_was_changed_is_refused(
    bare: Connection, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two databases with one version and different schemas are worse than an error."""
    migrate.migrate(bare)
    step = tmp_path / "9000_more.sql"
    step.write_text("ALTER TABLE jobs ADD COLUMN extra text;")
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path)
    assert migrate.migrate(bare) == ["9000_more"]

    step.write_text("ALTER TABLE jobs ADD COLUMN other text;")

    with pytest.raises(ConfigError, match="9000_more"):
        migrate.migrate(bare)


def test_a_migration_that_fails_leaves_nothing(bare: Connection, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction a file."""
    migrate.migrate(bare)
    (tmp_path / "9000_bad.sql").write_text("CREATE TABLE half (id int); SELECT 1/0;")
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path)

    with pytest.raises(Exception, match="division by zero"):
        migrate.migrate(bare)

    found = bare.execute("SELECT to_regclass('half') AS half").fetchone()
    assert found == {"half": None}
    assert migrate.get_schema_version(bare) == migrate.SCHEMA_VERSION


def test_a_migration_that_refuses_says_why(bare: Connection, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that renames refuses while a worker of the previous version holds a lease."""
    migrate.migrate(bare)
    (tmp_path / "9000_names.sql").write_text("DO $$ BEGIN RAISE EXCEPTION 'rows are leased by keep1@host'; END $$;")
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path)

    with pytest.raises(ConfigError, match="9000_names is not applied: rows are leased by keep1@host"):
        migrate.migrate(bare)
