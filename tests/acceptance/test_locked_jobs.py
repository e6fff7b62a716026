"""A forgotten transaction that holds two of 120 jobs: the others take no longer, and the two end without a crash."""

import contextlib
import sys
import time
from collections.abc import Iterator

import pytest

from db.connection import connect
from tests.acceptance.world import Asked, World, until
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

pytestmark = pytest.mark.prove  # it measures time; tests/integration/test_locked_rows.py has the short form

JOBS = 120
RATIO = 1.3
LOCK = "SELECT FROM jobs WHERE id = ANY(%s) FOR UPDATE"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a system of its own with the default settings: one keep worker with two children."""
    folder = tmp_path_factory.mktemp("locked")
    with (
        Standin().start(folder / "standin") as standin,
        LocalDeployment(folder / "local", keep_workers=1, concurrency=2, standin=standin) as local,
    ):
        made = World(local, standin, folder)
        yield made
        made.close()


def ready(world: World) -> list[Asked]:
    """Return 120 jobs whose 480 files wait for an operator to resume `keep`."""
    world.rows("INSERT INTO pauses (target, paused_by) VALUES ('keep', 'test') RETURNING target")
    asked = [world.ask({"outputs": 4, "duration_s": 0.1}) for _ in range(JOBS)]
    waiting = "SELECT count(*) AS n FROM outputs WHERE state = 'waiting'"
    until(lambda: world.one(waiting)["n"] == 4 * JOBS, "all files wait", seconds=300)
    return asked


def settle(world: World, asked: list[Asked]) -> float:
    """Resume `keep` and return the seconds until these jobs have settled."""
    ids = [one.job_id for one in asked]
    live = "SELECT count(*) AS n FROM jobs WHERE id = ANY(%(ids)s) AND settled_at IS NULL"
    since = time.monotonic()
    world.rows("DELETE FROM pauses RETURNING target")
    until(lambda: world.one(live, ids=ids)["n"] == 0, f"{len(ids)} jobs settled", seconds=600)
    return time.monotonic() - since


@pytest.mark.timeout(1800)
def test_the_other_118_jobs_take_no_longer(alone: World) -> None:
    """The lock cost every file 420 s of a child, and the deadlines of all jobs."""
    for _ in range(2):  # other work may have had the cores during one of the two rounds
        free = settle(alone, ready(alone)[2:])
        asked = ready(alone)
        with contextlib.closing(connect(alone.url, name="console")) as holder:
            holder.execute("BEGIN")
            holder.execute(LOCK, ([one.job_id for one in asked[:2]],))
            beside = settle(alone, asked[2:])
            assert {alone.job(one)["state"] for one in asked[:2]} == {"keeping"}
        alone.await_end(*asked, seconds=180)

        sys.stdout.write(f"\n118 jobs: {free:.1f} s, beside two locked ones {beside:.1f} s ({beside / free:.2f})")
        for one in asked[:2]:
            alone.check(one)
            assert {row["crashes"] for row in alone.outputs(one)} == {0}
        assert alone.rows("SELECT * FROM dead_letters") == []
        if beside < RATIO * free:
            return
    pytest.fail(f"118 jobs took {beside:.1f} s beside two locked ones, {free:.1f} s without")
