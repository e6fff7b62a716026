"""Fixtures that many modules share: what a worker has, and for the API a database, a front and a connection."""

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest

from db.connection import Connection, connect
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import core
from tests.integration import web_process as wp
from tests.support.databases import Databases


@pytest.fixture(scope="session", autouse=True)
def _close_idle_sessions() -> Iterator[None]:
    yield
    core.sessions.close(*core.of_files)


@pytest.fixture
def deps(stack: Stack, databases: Databases, database_url: str) -> Iterator[Deps]:
    """Return what a worker process has, over a fresh, migrated database."""
    database = databases.sessions.take_database(database_url)
    yield dataclasses.replace(cli.deps(stack, database_url), database=database)
    databases.sessions.give_back(database_url, database)


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, stack: Stack, template_database: str) -> str:
    """Return the URL of a fresh, migrated database, named for its module."""
    return stack.postgres.create_database(request.path.stem, template=template_database)


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    """Run the API and the receiver; files have an address of their own."""
    with wp.running(url, ASSET_BASE_URL=wp.BASE) as process:
        yield process


@pytest.fixture
def mine(url: str) -> Iterator[Connection]:
    """Return a connection for a test's own eyes, in autocommit mode."""
    with contextlib.closing(connect(url)) as made:
        yield made
