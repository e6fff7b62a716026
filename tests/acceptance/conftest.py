"""The running system that acceptance tests share, and the ends of its logs where one fails."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.connection import connect
from embedded import ports
from tests.acceptance import browser
from tests.acceptance.world import SETTINGS, World
from tests.support.application import Application, listening
from tests.support.databases import cheapen_logins
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

HERE = Path(__file__).parent
SHARED = pytest.StashKey[World]()
NOTIFY_SECRET = "whsec_" + base64.b64encode(b"the secret of acceptance tests").decode()


@pytest.fixture(scope="session")
def application() -> Iterator[Application]:
    """Run the application that is told of every job."""
    with listening() as made:
        yield made


@pytest.fixture(scope="session")
def session_world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: int,
    application: Application,
) -> Iterator[World]:
    """
    Run servers, stand-in, receiver, three workers and beat, until the last test of this folder.

    They would take a fifth of two cores from all tests that come after, so that `World.rest` ends them there.
    """
    folder = tmp_path_factory.mktemp("moorage")
    armed = folder / "armed"
    armed.mkdir()
    with Standin().start(folder / "standin") as standin:
        overrides = {
            **SETTINGS,
            "MOORAGE_NOTIFY_URL": application.url,
            "MOORAGE_NOTIFY_SECRET": NOTIFY_SECRET,
            "MOORAGE_FAILPOINT": f"@{armed}",
            "MOORAGE_EGRESS_ALLOW": f"{standin.address},127.0.0.1:{free_port}",
        }
        with LocalDeployment(
            folder / "local", keep_workers=2, concurrency=4, standin=standin, overrides=overrides
        ) as local:
            with contextlib.closing(connect(local.stack.postgres.url("postgres"))) as conn:
                cheapen_logins(conn)
            world = World(local, standin, armed)
            world.mend()  # all workers take messages: what is measured first is not how long they took to start
            request.config.stash[SHARED] = world
            yield world
            world.close()


@pytest.fixture(scope="module")
def shared_world(session_world: World) -> World:
    """Give the running system without files of other modules that wait: attempts without end would open a breaker."""
    session_world.wake()
    session_world.end_others()
    return session_world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """Give the running system, whole again after each test."""
    shared_world.wake()
    yield shared_world
    shared_world.mend()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the running system behind the last test that may use it."""
    if nextitem is not None and HERE not in nextitem.path.parents and SHARED in item.config.stash:
        item.config.stash[SHARED].rest()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Add the ends of all logs to the report of a failure."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and isinstance(world, World):
        folder: Path = world.local.folder / "logs"
        for path in sorted(folder.glob("*.log")):
            report.sections.append((path.name, path.read_text(errors="replace")[-3000:]))
    return report


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Run a browser for a module; its tests are skipped where there is none."""
    with browser.chromium() as running:
        yield running


@pytest.fixture(scope="session")
def free_port() -> int:
    """Return a port for a test's own file server; the workers may reach it."""
    return ports.reserve(1)[0]
