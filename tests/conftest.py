"""Fixtures for all tests: one embedded stack a session, a fresh database a test, made from a migrated template."""

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from db import migrate
from db.connection import Connection, Database, connect
from embedded.process import Process
from embedded.stack import Stack
from storage import s3_clients
from storage.s3_clients import S3Clients
from tests.support import fork_server
from tests.support.databases import Databases, cheapen_logins

os.environ["MOORAGE_DOTENV"] = ""  # a developer's .env is not the tests'
os.environ.pop("AWS_SESSION_TOKEN", None)  # nor are the credentials

gc.disable()  # until all tests are collected, which makes no garbage: a sixth of its time


def pytest_collection_finish() -> None:
    """Collect garbage from here on, without looking through the tests themselves each time."""
    gc.freeze()
    gc.enable()


# Every skip there may be: the beginning of its reason, and when that is all right. Another skip fails the run.
LISTED_SKIPS = {
    "reads /proc": "not on Linux",
    "macOS has no parent death signal": "not on Linux",
    "no RabbitMQ is installed": "no wheel holds one; .ci/run installs the distribution's where it may",
    "no PgBouncer is installed": "no wheel holds one; .ci/run installs the distribution's where it may",
    "no Chromium is installed": "no wheel holds one; .ci/browser installs the distribution's where it may",
    "no playwright is installed": "make browser installs it; not needed for anything else",
    "no tmpfs can be mounted": "neither as root nor in a user namespace",
    "no Node.js is installed": "no wheel holds it: the handler for Next.js is then not run",
    "only root makes folders that the server's user cannot enter": "run as an ordinary user",
    "only root mounts a file system that the server sees": "run as an ordinary user, or where mounts are forbidden",
}
_unlisted: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note skips that nobody listed with a reason."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note whole files that are skipped, as for a package that is not installed."""
    _note(report)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith(tuple(LISTED_SKIPS)):
            _unlisted.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run with an unlisted skip: a test that silently stops running proves nothing."""
    if _unlisted and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips are not listed."""
    for line in _unlisted:
        terminalreporter.write_line(f"skip not listed in tests/conftest.py: {line}", red=True)


# Acceptance tests start one system in each xdist worker that runs some of them: two halves of equal length start two.
# test_drill, test_up and test_compose have processes of their own, and are units of their own.
SECOND_HALF = {
    "test_failpoint_crashes.py",
    "test_keep_command.py",
    "test_large_video.py",
    "test_outages.py",
    "test_page_browser.py",
    "test_page_filters.py",
    "test_projects.py",
    "test_job_action_kills.py",
    "test_submit_kills.py",
}
OWN_PROCESSES = {"test_drill.py", "test_up.py", "test_compose.py"}


class Scheduler(LoadFileScheduling):
    """Gives each xdist worker a file at a time, or half of the acceptance tests."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePath(nodeid.partition("::")[0])
        if path.parent.name != "acceptance" or path.name in OWN_PROCESSES:
            return str(path)
        return "acceptance, second half" if path.name in SECOND_HALF else "acceptance, first half"


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Schedule by file where the command line says so."""
    return Scheduler(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run PostgreSQL, Valkey and SeaweedFS for the whole session."""
    version = 16 if os.environ.get("TEST_POSTGRES_VERSION") == "16" else 18
    with Stack(tmp_path_factory.mktemp("stack"), postgres_version=version) as running:
        _stop_waiting_for_disks(running.postgres.url("postgres"))
        yield running


def _stop_waiting_for_disks(url: str) -> None:
    """Have PostgreSQL flush nothing: of all crashes only one of the operating system could lose data by it."""
    with contextlib.closing(connect(url)) as conn:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            conn.execute(f"ALTER SYSTEM SET {setting} = off")
        conn.execute("SELECT pg_reload_conf()")
        cheapen_logins(conn)


@pytest.fixture(scope="session")
def template_database(stack: Stack) -> str:
    """Return the name of a migrated database that others are copied from."""
    url = stack.postgres.create_database("moorage_template")
    conn = connect(url)
    migrate.migrate(conn)
    conn.close()
    return "moorage_template"


@pytest.fixture(scope="session")
def databases(stack: Stack, template_database: str) -> Iterator[Databases]:
    """Return the databases of single tests."""
    made = Databases(stack, template_database)
    yield made
    made.close()


@pytest.fixture(scope="session", autouse=True)
def _fork_our_processes() -> Iterator[None]:
    """Fork what a stack or a test runs as `python -m`, such as the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "spawn", staticmethod(fork_server.spawn))
        yield


@pytest.fixture(scope="session", autouse=True)
def _share_s3_clients() -> Iterator[None]:
    """Create one client for each store, account and kind, not for each test: 20 ms of processor time."""
    create, made = S3Clients._create_client, dict[str, Any]()

    def reuse(self: S3Clients, endpoint: str | None, config: dict[str, Any]) -> Any:
        settings = self._settings
        if settings.aws_secret_access_key is None:  # those of the environment, which tests change
            return create(self, endpoint, config)
        secret = settings.aws_secret_access_key.get_secret_value()
        token = settings.aws_session_token
        constants = s3_clients._CONNECT_SECONDS, s3_clients._READ_SECONDS  # a test changes them
        key = repr(
            (os.getpid(), endpoint, config, settings.aws_access_key_id, secret, token, settings.aws_region, constants)
        )
        if key not in made:
            made[key] = create(self, endpoint, config)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Clients, "_create_client", reuse)
        yield


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """Return the URL of an empty, migrated database."""
    url = databases.take()
    yield url
    databases.give_back(url)


@pytest.fixture
def database(databases: Databases, database_url: str) -> Iterator[Database]:
    """Return the connection of a worker process."""
    made = databases.sessions.take_database(database_url)
    yield made
    databases.sessions.give_back(database_url, made)


@pytest.fixture
def conn(databases: Databases, database_url: str) -> Iterator[Connection]:
    """Return a connection for a test's own eyes, in autocommit mode."""
    made = databases.sessions.take_conn(database_url)
    yield made
    databases.sessions.give_back(database_url, made)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Return the checkout."""
    return Path(__file__).resolve().parent.parent
