"""Processes killed, or asked to stop, while they keep a file."""

import os
import signal

from tests.acceptance.world import LEASE_SECONDS, WORKERS, until

# Long enough for the slowest machine to find who holds it; whoever takes it up afterwards is quick.
SLOW = {"faults": {"0": "slow_once"}}


def test_a_killed_workers_file_is_kept_by_another(world):
    """A machine that dies leaves no word; the lease ends by itself and the next worker takes the row."""
    await_old_postgres(world)
    asked = world.ask(SLOW)
    leased = world.await_leased(asked)

    world.holder(leased).kill()
    taken = "SELECT 1 FROM outputs WHERE id = %(id)s AND lease_token <> %(token)s OR id = %(id)s AND state = 'kept'"
    until(
        lambda: world.rows(taken, id=leased["id"], token=leased["lease_token"]),
        "another worker took the file",
        seconds=LEASE_SECONDS + 5,
    )
    world.await_end(asked)

    (output,) = world.outputs(asked)
    assert (output["attempt"], output["crashes"]) == (2, 1)
    world.check(asked)


def test_a_killed_childs_file_is_taken_up_by_its_worker_at_once(world):
    """The commonest crash is one child, out of memory: nobody has to wait for the lease to end."""
    asked = world.ask(SLOW)
    leased = world.await_leased(asked)
    child = world.child(leased)

    os.kill(child, signal.SIGKILL)
    until(lambda: released(world, leased), "the lease was freed before its end", seconds=LEASE_SECONDS)
    world.await_end(asked)
    (output,) = world.outputs(asked)
    assert (output["attempt"], output["crashes"]) == (2, 1)
    world.check(asked)


def released(world, leased):
    told = "SELECT 1 FROM events WHERE subject_id = %(id)s AND reason LIKE 'its process died%%'"
    return world.rows(told, id=leased["id"])


def test_a_stopped_worker_hands_its_file_back_uncounted(world):
    """A deployment is no error of the file: its attempt is taken back, and the next worker goes on at once."""
    asked = world.ask(SLOW)
    leased = world.await_leased(asked)
    worker = world.holder(leased)

    os.kill(worker.pid, signal.SIGTERM)
    status = worker.wait(20)

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

    for _ in range(5):
        leased = world.await_leased(asked)
        crashes = leased["crashes"]
        os.kill(world.child(leased), signal.SIGKILL)
        until(lambda seen=crashes: world.outputs(asked)[0]["lease_token"] is None
              or world.outputs(asked)[0]["crashes"] > seen, "the lease was freed")  # fmt: skip
    world.await_end(asked)

    (output,) = world.outputs(asked)
    assert (output["state"], output["category"]) == ("dead", "POISON")
    assert world.job(asked)["state"] == "failed"
    assert [letter["category"] for letter in world.letters(asked)] == ["POISON"]


def test_every_worker_killed_at_once_loses_nothing(world):
    """A machine with all workers on it goes down in the middle of everything."""
    await_old_postgres(world)
    asked = [world.ask({"outputs": 4, "faults": {"0": "slow"}}) for _ in range(4)]
    world.await_leased(asked[0])

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
    until(lambda: world.one(old)["old"], "PostgreSQL has run for 31 s", seconds=35)
