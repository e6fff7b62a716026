"""Migrations: the schema is applied once, however often and by however many."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import migrate
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.errors import ConfigError
from tests.integration.core import together, wait_until


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


@pytest.fixture
def held(bare: Connection, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Return a connection whose transaction has read the table that the next migration changes, as pg_dump does."""
    migrate.migrate(bare)
    (tmp_path / "9000_more.sql").write_text("ALTER TABLE work_totals ADD COLUMN extra text;")
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path)
    monkeypatch.setattr(migrate, "PAUSE_SECONDS", 0.3)
    with connect(empty, name="pg_dump") as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT count(*) FROM work_totals")
        yield holder


def test_rows_are_written_while_a_migration_waits_for_a_lock(
    held: Connection, bare: Connection, empty: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every INSERT queues behind a statement that waits; a backup holds its locks until its end."""
    written: list[int] = []

    def write() -> None:
        with connect(empty) as conn:
            for n in range(3):
                conn.execute("SET lock_timeout = '4s'")
                conn.execute("INSERT INTO work_totals VALUES (%s, '{}', 1)", (str(n),))
                written.append(n)
                wait_until(lambda n=n: len(caplog.records) > n)  # type: ignore[misc]
        held.execute("COMMIT")

    with caplog.at_level(logging.WARNING):
        applied: list[str] = []
        together(lambda: applied.extend(migrate.migrate(bare)), write)

    assert (written, applied) == ([0, 1, 2], ["9000_more"])
    assert "pg_dump" in str(vars(caplog.records[0]))


def test_the_wait_for_another_run_is_not_part_of_the_two_minutes(
    held: Connection, bare: Connection, empty: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a long migration of another container it gave up at the first table that was locked."""
    monkeypatch.setattr(migrate, "LOCKED_SECONDS", 1.0)  # less than one wait for a table: all of it is before the first

    def release() -> None:
        wait_until(lambda: len(another.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()) > 0)
        another.execute("COMMIT")
        wait_until(lambda: len(caplog.records) > 0)
        held.execute("COMMIT")

    with caplog.at_level(logging.WARNING), connect(empty) as another:
        another.execute("BEGIN")
        another.execute(migrate.LOCK)
        applied: list[str] = []
        together(lambda: applied.extend(migrate.migrate(bare)), release)

    assert applied == ["9000_more"]


def test_a_migration_gives_up_and_names_who_holds_the_lock(
    held: Connection, bare: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is applied; the operator ends that transaction, or tries again later."""
    monkeypatch.setattr(migrate, "LOCKED_SECONDS", 0.0)

    with pytest.raises(ConfigError, match=rf"pid {held.info.backend_pid} \(pg_dump.*moorage migrate"):
        migrate.migrate(bare)

    assert migrate.get_schema_version(bare) == migrate.SCHEMA_VERSION
