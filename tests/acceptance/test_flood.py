"""A flood of files on the running system: what expires first is kept in time; a slow host does not hold a worker."""

import time
from collections.abc import Iterator

import pytest

from tests.acceptance.world import World, until
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

pytestmark = pytest.mark.prove  # minutes; tests/integration/test_urgency.py and test_breakers.py have the short forms

FILES, FEW, PER_JOB = 2000, 50, 20
DUE = "job_id = %(good)s AND state = 'waiting' AND lease_token IS NULL"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a system of its own: one keep worker with four children."""
    folder = tmp_path_factory.mktemp("flood")
    with (
        Standin().start(folder / "standin") as standin,
        LocalDeployment(folder / "local", keep_workers=1, concurrency=4, standin=standin) as local,
    ):
        made = World(local, standin, folder)
        yield made
        made.close()


def count(world: World, condition: str) -> int:
    return int(world.one(f"SELECT count(*) AS n FROM outputs WHERE {condition}")["n"])


def arrive(world: World, files: int, seconds: float) -> list[str]:
    """Return the jobs of files that wait, with a life that begins now."""
    before = count(world, "true")
    asked = [world.ask({"outputs": PER_JOB, "duration_s": 0.1}) for _ in range(-(-files // PER_JOB))]
    until(lambda: count(world, "true") >= before + len(asked) * PER_JOB, "the files wait", seconds=300)
    ids = [str(one.job_id) for one in asked]
    life = "UPDATE outputs SET expires_at = moment() + make_interval(secs => %(s)s) WHERE job_id = ANY(%(ids)s::uuid[])"
    world.rows(f"{life} RETURNING id", s=seconds, ids=ids)
    return ids


@pytest.mark.timeout(1800)
def test_fifty_files_of_a_short_life_are_kept_before_two_thousand_others(alone: World) -> None:
    """Their life is a quarter of the time that the 2,000 need; the queue is never deeper than documented."""
    alone.rows("INSERT INTO pauses (target, paused_by) VALUES ('keep', 'test') RETURNING target")
    arrive(alone, FILES, 86_400)
    alone.rows("DELETE FROM pauses RETURNING target")
    since, deepest = time.monotonic(), 0
    until(lambda: count(alone, "state = 'kept'") >= FILES // 10, "a tenth is kept", seconds=300)
    need = (time.monotonic() - since) * 10

    short = arrive(alone, FEW, need / 4)

    def is_over() -> bool:
        nonlocal deepest
        deepest = max(deepest, alone.depth("keep"))
        return count(alone, "state = 'waiting'") == 0

    until(is_over, "all are kept", seconds=1200)
    assert count(alone, "state <> 'kept' OR ended_at > expires_at") == 0
    last = alone.one("SELECT max(ended_at) AS at FROM outputs WHERE job_id = ANY(%(ids)s::uuid[])", ids=short)["at"]
    assert count(alone, f"ended_at > '{last.isoformat()}'") > FILES // 3
    assert deepest <= 64


def test_a_slow_host_holds_half_of_a_worker(alone: World) -> None:
    """Four processes, eight files that take five seconds each: files of another host go on beside them."""
    alone.rows("INSERT INTO pauses (target, paused_by) VALUES ('keep', 'test') RETURNING target")
    slow = alone.ask({"outputs": 8, "duration_s": 0.1, "faults": {str(n): "slow_once" for n in range(8)}})
    good = alone.ask({"outputs": 8, "duration_s": 0.1})
    both = [slow.job_id, good.job_id]
    sql = "SELECT count(*) AS n FROM outputs WHERE job_id = ANY(%(ids)s)"
    until(lambda: alone.one(sql, ids=both)["n"] == 16, "the files wait")
    alone.rows("UPDATE predictions SET provider = 'direct' WHERE job_id = %(id)s RETURNING id", id=good.job_id)
    alone.rows(
        "UPDATE outputs SET source = replace(source, '127.0.0.1', 'localhost'),"
        " expires_at = moment() + interval '1 day' WHERE job_id = %(id)s RETURNING id",
        id=good.job_id,
    )
    alone.rows("DELETE FROM pauses RETURNING target")
    held = f"{sql} AND lease_token IS NOT NULL AND EXISTS (SELECT FROM outputs WHERE {DUE})"
    most = 0

    def are_good_kept() -> bool:
        nonlocal most
        most = max(most, alone.one(held, ids=[slow.job_id], good=good.job_id)["n"])
        return bool(alone.one(f"{sql} AND state = 'kept'", ids=[good.job_id])["n"] == 8)

    until(are_good_kept, "the good ones are kept")
    assert most == 2
    assert alone.one(f"{sql} AND state = 'kept'", ids=[slow.job_id])["n"] < 8
    alone.await_end(slow, good)
