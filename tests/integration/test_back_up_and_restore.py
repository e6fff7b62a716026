"""A dump is restored as docs/how-to/back-up-and-restore.md says: the audit shows what the page says it shows."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from embedded import wheels
from embedded.stack import Stack
from storage.s3 import ObjectStore
from tasks.audit import run as audit
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.support import pages

PAGE = pages.HOW_TO / "back-up-and-restore.md"


def deps_of(stack: Stack, url: str) -> Iterator[Deps]:
    deps = cli.deps(stack, url, buckets_of="restore")
    yield deps
    deps.database.close()


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    yield from deps_of(stack, database_url)


@pytest.fixture
def restored(stack: Stack) -> Iterator[Deps]:
    """Return moorage on an empty database, beside the same buckets."""
    yield from deps_of(stack, stack.postgres.create_database("moorage_restored"))
    stack.postgres.drop_database("moorage_restored")


def run_from_page(program: str, url: str, folder: Path) -> None:
    """Run the one command of the page that begins with this program."""
    lines = [line for block in pages.read_blocks(PAGE, "console") for line in block.text.splitlines()]
    (line,) = [line for line in lines if line.startswith(f"$ {program} ")]
    _, *words = shlex.split(line.removeprefix("$ ").replace("$DATABASE_URL", url))
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    subprocess.run([wheels.postgres_folder(18) / "bin" / program, *words], cwd=folder, env=env, check=True, timeout=100)


def list_keys(storage: ObjectStore) -> set[str]:
    return {listed.key for listed in storage.list_objects(storage.public_bucket, "")}


def test_the_audit_after_a_restore_shows_what_the_page_says(stack, deps, restored, database_url, tmp_path):
    """Later files are notes; a file that the bucket lacks is a finding of rule 4, with its key."""
    storage = deps.storage
    world.kept(deps, "before")
    before = list_keys(storage)
    run_from_page("pg_dump", database_url, tmp_path)
    world.kept(deps, "after")
    url = restored.settings.database_url.get_secret_value()

    run_from_page("pg_restore", url, tmp_path)

    report = audit.run_audit(restored, deep=True, second_look_seconds=0.0, sample=0)
    assert report.findings == []
    assert {note.id for note in report.notes} == list_keys(storage) - before
    key = max(key for key in before if key.endswith(".png"))
    storage.delete(storage.public_bucket, key)
    (finding,) = audit.run_audit(restored, deep=True, second_look_seconds=0.0, sample=0).findings
    assert (finding.check.rule, finding.what) == (4, f"its object {key} is missing")
    (statement,) = pages.read_blocks(PAGE, "sql")
    with psycopg.connect(url) as conn, psycopg.connect(database_url) as lost:
        conn.execute(statement.text.encode())
        last = lost.execute("SELECT max(id) FROM events").fetchone()
        restored_next = conn.execute("SELECT nextval(pg_get_serial_sequence('events', 'id'))").fetchone()
    assert last is not None
    assert restored_next is not None
    assert restored_next[0] > last[0] + 900_000
