"""Processes killed, or asked to stop, while they keep a file."""

import contextlib
import os
import signal

import pytest

from tests.acceptance.victims import SLOW, kill_any_child, kill_any_worker, kill_child, worker_of
from tests.acceptance.world import WORKERS, until


@pytest.mark.timeout(400)  # PostgreSQL must have run for 31 s
def test_a_killed_workers_file_is_kept_by_another(world):
    """A machine that dies leaves no word; the lease ends by itself and the next worker takes the row."""
    await_old_postgres(world)
    asked, _ = kill_any_worker(world)

    world.await_end(asked)

    (output,) = world.outputs(asked)
    assert (output["attempt"], output["crashes"]) == (2, 1)
    world.check(asked)


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
    told = "SELECT 1 FROM events WHERE subject_id = %(id)s AND kind = 'worker_died'"
    return world.rows(told, id=leased["id"])


def test_a_stopped_worker_hands_its_file_back_uncounted(world):
    """A deployment is no error of the file: its attempt is taken back, and the next worker goes on at once."""
    asked = world.ask(SLOW)
    leased = world.await_leased(asked)
    worker = worker_of(world, leased)

    os.kill(worker.pid, signal.SIGTERM)
    status = worker.wait(60)

    assert status == 0, worker.log_tail()
    world.await_end(asked)
    (output,) = world.outputs(asked)
    assert (output["attempt"], output["crashes"]) == (1, 0)
    kinds = [e["kind"] for e in world.rows("SELECT kind FROM events WHERE subject_id = %(id)s", id=output["id"])]
    assert "worker_stopping" in kinds
    world.check(asked)


def test_a_stopped_worker_finishes_within_its_grace_what_it_can(world):
    """What is nearly downloaded need not be downloaded twice for a deployment."""
    with world.without("keep1", "keep2"), one_more(world, "patient", MOORAGE_STOP_GRACE_SECONDS="60") as worker:
        asked = world.ask(SLOW)
        leased = world.await_leased(asked)
        asked_at = world.one("SELECT clock_timestamp() AS at")["at"]

        os.kill(worker.pid, signal.SIGTERM)
        status = worker.wait(60)

        assert status == 0, worker.log_tail()
        (output,) = world.outputs(asked)  # nobody else could have kept it
        assert (output["state"], output["attempt"], output["crashes"]) == ("kept", 1, 0)
        assert output["ended_at"] > asked_at
        assert leased["leased_by"].startswith("patient@")
    world.await_end(asked)
    assert world.job(asked)["state"] == "succeeded"
    world.check(asked)


@contextlib.contextmanager
def one_more(world, name, **settings):
    """Give one more worker that keeps files, with settings of its own."""
    worker = world.local.add_worker(name, "-Q", "keep", "-c", "2", **settings)
    worker.launch()
    try:
        yield worker
    finally:
        del world.local.processes[name]
        worker.stop()


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


# Each comes later in the keeping of a file than the one before: where all are armed, each attempt dies at the next.
FIVE_DEATHS = (
    "keep.after_claim",
    "keep.before_download",
    "keep.after_download",
    "keep.before_upload",
    "keep.after_upload",
)


@pytest.mark.parametrize("point", ["poison.before_record", "poison.after_record"])
def test_a_crash_while_a_poisonous_row_is_buried_buries_it_once(world, point):
    """The row that killed five workers kills a sixth, at the commit that ends it: still one dead letter, one end."""
    world.end_others()
    for armed in (*FIVE_DEATHS, point):
        world.arm(armed)

    asked = world.ask({"outputs": 1})
    until(lambda: not world.is_armed(point), f"a crash at {point}")
    world.await_end(asked)

    (output,) = world.outputs(asked)
    assert (output["state"], output["category"]) == ("dead", "POISON")
    assert (output["attempt"], output["crashes"]) == (5, 5)
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
