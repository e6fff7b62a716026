"""How fast work goes on after a fault, measured: `pytest -s -m prove` on this file prints the figures."""

import time

import pytest

from tests.acceptance.pace import hold, settled
from tests.acceptance.test_kills import await_old_postgres, released
from tests.acceptance.victims import kill_any_child, kill_any_worker
from tests.acceptance.world import LEASE_SECONDS, until

pytestmark = pytest.mark.prove  # it measures time; what is measured is tested by state in test_kills and test_outages

# What is promised, with a second or more for a busy machine: figures belong to a quiet one.
NOISE_SECONDS = 3.0


def again(world, leased, since: float) -> float:
    """Return the seconds until another lease was taken on a row; it may have ended since."""
    taken = "SELECT 1 FROM outputs WHERE id = %(id)s AND attempt > %(attempt)s"
    until(lambda: world.rows(taken, id=leased["id"], attempt=leased["attempt"]), "the row is taken up again")
    return time.monotonic() - since


def test_the_file_of_a_killed_child_runs_again_within_a_second(world):
    """The main process sees the death and frees just that lease: nobody waits for its end."""

    def kill():
        asked, leased = kill_any_child(world)
        took = again(world, leased, time.monotonic())
        assert released(world, leased)
        world.await_end(asked)
        return took

    # 0.2 s on a quiet machine: here others share its cores
    hold(
        world, "pool child killed, until its file runs again", lambda: [kill() for _ in range(4)],
        median=2.0, worst=LEASE_SECONDS,
    )  # fmt: skip


@pytest.mark.timeout(400)  # PostgreSQL must have run for 31 s
def test_the_file_of_a_killed_worker_runs_again_within_its_lease(world):
    """A machine that vanishes leaves no word: its lease ends, and a sweep frees the row."""
    await_old_postgres(world)

    def kill():
        asked, leased = kill_any_worker(world)
        took = again(world, leased, time.monotonic())
        world.mend()
        world.await_end(asked)
        return took

    what = f"worker killed (lease {LEASE_SECONDS:.0f} s), until its file runs again"
    hold(world, what, lambda: [kill() for _ in range(2)], worst=LEASE_SECONDS + 2.0 + NOISE_SECONDS)


@pytest.mark.timeout(400)
def test_the_file_of_a_killed_worker_is_kept_soon_after_its_lease(world):
    """The whole way: the lease ends, a sweep frees the row, another worker downloads and stores the file."""
    await_old_postgres(world)

    def kill():
        asked, _ = kill_any_worker(world)
        since = time.monotonic()
        world.await_end(asked)
        took = time.monotonic() - since
        (output,) = world.outputs(asked)
        assert (output["attempt"], output["crashes"]) == (2, 1)
        world.check(asked)
        world.mend()
        return took

    hold(world, "worker killed, until its file is kept", lambda: [kill()], worst=LEASE_SECONDS + 5)


def test_work_flows_again_after_the_broker(world):
    """Emptied or restarted, it held nothing that PostgreSQL does not know."""

    def empty():
        with world.broker() as client:
            client.flushall()
        return settled(world)

    def restart():
        world.local.stack.valkey.kill()
        world.local.stack.valkey.start()
        return settled(world)

    emptied, restarted = "broker emptied, until a new job is kept", "broker restarted, until a new job is kept"
    hold(world, emptied, lambda: [empty() for _ in range(3)], worst=5.0 + NOISE_SECONDS)
    hold(world, restarted, lambda: [restart() for _ in range(2)], worst=5.0 + NOISE_SECONDS)


def test_work_flows_again_after_postgresql(world):
    """Every process finds its way back by itself."""
    before = world.pids()

    def restart():
        world.local.stack.postgres.kill()
        world.local.stack.postgres.start()
        return settled(world)

    what = "PostgreSQL restarted, until a new job is kept"
    hold(world, what, lambda: [restart() for _ in range(2)], worst=5.0 + NOISE_SECONDS)
    assert world.pids() == before
