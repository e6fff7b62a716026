"""Fixtures that many modules share: what a worker has, and for the API a database, a front and a connection."""

import contextlib
import os
import ssl
from collections.abc import Iterator
from typing import Any

import boto3.session
import pytest

from db.connection import Connection, connect
from egress import session
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import web_process as wp


@pytest.fixture(scope="session", autouse=True)
def shared_clients() -> Iterator[None]:
    """Share S3 clients and TLS contexts between tests: each takes a tenth of a second of processor time to create."""
    make_client, make_context = boto3.session.Session.client, session._tls_context
    clients: dict[str, Any] = {}
    contexts: dict[str | None, ssl.SSLContext] = {}

    def client(self: boto3.session.Session, service: str, **given: Any) -> Any:
        config = given["config"]._user_provided_options
        key = repr((os.getpid(), service, sorted(({**given, "config": config}).items())))
        if key not in clients:
            clients[key] = make_client(self, service, **given)  # type: ignore[call-overload]
        return clients[key]

    def context() -> ssl.SSLContext:
        file = os.environ.get("SSL_CERT_FILE")
        if file not in contexts:
            contexts[file] = make_context()
        return contexts[file]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3.session.Session, "client", client)
        patch.setattr(session, "_tls_context", context)
        yield


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    """Return what a worker process has, over a fresh, migrated database."""
    made = cli.deps(stack, database_url)
    yield made
    made.database.close()


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
