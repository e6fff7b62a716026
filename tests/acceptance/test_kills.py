"""Processes killed, or asked to stop, while they keep a file."""

import os
import signal
import time

import pytest

from tests.acceptance.pace import hold
from tests.acceptance.victims import SLOW, kill_any_child, kill_child, worker_of
from tests.acceptance.world import LEASE_SECONDS, WORKERS, until


@pytest.mark.timeout(400)  # PostgreSQL must have run for 31 s
def test_a_killed_workers_file_is_kept_by_another(world):
    """A machine that dies leaves no word; the lease ends by itself and the next worker takes the row."""
    await_old_postgres(world)

    def kill():
        asked = world.ask(SLOW)
        leased = world.await_leased(asked)
        worker_of(world, leased).kill()
        since = time.monotonic()
        world.await_end(asked)
        took = time.monotonic() - since
        (output,) = world.outputs(asked)
        assert (output["attempt"], output["crashes"]) == (2, 1)
        world.check(asked)
        world.mend()
        return took

    hold(world, "worker killed, until its file is kept", lambda: [kill()], worst=LEASE_SECONDS + 5)


def test_a_killed_childs_file_is_taken_up_by_its_worker_at_once(world):
    """The commonest crash is one child, out of memory: nobody has to wait for the lease to end."""
    asked, leased = kill_any_child(world)

    until(lambda: released(world, leased), "the worker freed the lease, and no sweep")
    world.await_end(asked)
    (output,) = world.outputs(asked)
    assert (output["attempt"], output["crashes"]) == (2, 1)
    world.check(asked)


def is_free(world, leased):
    """Return whether a lease has ended, be it that the next one holds the row."""
    held = "SELECT 1 FROM outputs WHERE id = %(id)s AND lease_token = %(token)s"
    return not world.rows(held, id=leased["id"], token=leased["lease_token"])


def released(world, leased):
    told = "SELECT 1 FROM events WHERE subject_id = %(id)s AND reason LIKE 'its process died%%'"
    return world.rows(told, id=leased["id"])


def test_a_stopped_worker_hands_its_file_back_uncounted(world):
    """A deployment is no error of the file: its attempt is taken back, and the next worker goes on at once."""
    asked = world.ask(SLOW)
    leased = world.await_leased(asked)
    worker = worker_of(world, leased)

    os.kill(worker.pid, signal.SIGTERM)
    status = worker.wait(60)

    assert status == 0, worker.tail()
    world.await_end(asked)
    (output,) = world.outputs(asked)
    assert (output["attempt"], output["crashes"]) == (1, 0)
    reasons = [e["reason"] for e in world.rows("SELECT reason FROM events WHERE subject_id = %(id)s", id=output["id"])]
    assert "the worker is stopping" in reasons
    world.check(asked)


def test_a_row_that_kills_every_worker_ends_as_poison(world):
    """A file that kills its decoder must not take worker after worker down for ever."""
    asked = world.ask({"outputs": 1, "faults": {"0": "slow_forever"}})

    killed = 0
    while killed < 5:
        leased = kill_child(world, asked)
        killed += leased is not None
        until(lambda held=leased: held is None or is_free(world, held), "the lease was freed")
    world.await_end(asked)

    (output,) = world.outputs(asked)
    assert (output["state"], output["category"]) == ("dead", "POISON")
    assert world.job(asked)["state"] == "failed"
    assert [letter["category"] for letter in world.letters(asked)] == ["POISON"]


def test_every_worker_killed_at_once_loses_nothing(world):
    """A machine with all workers on it goes down in the middle of everything."""
    await_old_postgres(world)
    asked = [world.ask({"outputs": 4, "faults": {"0": "slow"}}) for _ in range(4)]
    world.await_leased(asked[-1])

    for name in WORKERS:
        world.local.processes[name].kill()
    for name in WORKERS:
        world.local.processes[name].launch()

    world.await_end(*asked)
    for one in asked:
        assert world.job(one)["state"] == "succeeded"
        world.check(one)


def await_old_postgres(world):
    """Wait until sweeps free leases again: they do not in the first half minute of PostgreSQL's life."""
    old = "SELECT pg_postmaster_start_time() < clock_timestamp() - interval '31 s' AS old"
    until(lambda: world.one(old)["old"], "PostgreSQL has run for 31 s")
