"""Servers emptied, killed and away in mid-run: everything completes, and no process of ours is started again."""

from tests.acceptance.test_bad_input import send
from tests.acceptance.world import WORKERS, until

MANY = {"outputs": 3, "faults": {"0": "slow"}}
KEEP_PROCESSES = 8  # two workers with four each
HELD = {"outputs": 3, "faults": {"0": "slow", "1": "slow", "2": "slow"}}


def test_an_emptied_broker_loses_nothing(world):
    """Nothing exists only in the broker."""
    before = world.pids()
    asked = [world.ask(MANY) for _ in range(5)]
    world.await_leased(asked[-1])  # the first may have been kept when the last is asked for

    with world.broker() as client:
        client.flushall()

    finish(world, asked, before)


def test_a_broker_that_is_away_delays_only(world):
    """Webhooks are recorded without it; when it is back dispatch sends what is due."""
    before, known = world.pids(), count_refusals(world)
    asked = [world.ask(HELD) for _ in range(4)]
    until(lambda: both_hold(world, asked), "both keep workers hold messages that they have not acknowledged")
    valkey = world.local.stack.valkey

    valkey.kill()
    asked += [world.ask({"outputs": 2}) for _ in range(2)]
    until(lambda: all(said_all(world, one) for one in asked), "every webhook was answered 2xx")
    until(
        lambda: all(n >= known[name] + 3 for name, n in count_refusals(world).items()),
        "the workers have met the outage three times, and wait longer each time",
    )
    valkey.start()

    finish(world, asked, before)


def count_refusals(world):
    """Return how often each worker has found no broker."""
    return {name: world.local.processes[name].read_log(10**7).count("broker.unavailable") for name in WORKERS}


def both_hold(world, asked):
    """Return whether both keep workers are at work; one that another test killed may still be starting."""
    if all(world.job(one)["settled_at"] for one in asked):
        asked.append(world.ask(HELD))
    held = "SELECT count(DISTINCT split_part(leased_by, '@', 1)) AS n FROM outputs WHERE lease_token IS NOT NULL"
    return world.one(held)["n"] == 2


def said_all(world, asked):
    """Return whether the provider's last webhook of a prediction was taken."""
    told = world.standin.get_ledger()["summary"]["acknowledged"].values()
    return any(a["prediction"] == asked.external_id and a["event"] == "completed" for a in told)


def test_a_process_downloads_once_while_storage_is_away(world):
    """Then it asks storage before each download; our outage is no error of the files."""
    before = world.pids()
    weed = world.local.stack.seaweedfs
    weed.kill()

    asked = [world.ask({"outputs": 6}) for _ in range(3)]
    until(lambda: all(refused(world, one) for one in asked), "every output met the outage")
    served = [tuple(pair) for pair in world.standin.get_ledger()["summary"]["served_whole"]]
    assert len([path for name, path in served if name in {one.external_id for one in asked}]) <= KEEP_PROCESSES
    weed.start()

    finish(world, asked, before)
    assert {row["attempt"] for one in asked for row in world.outputs(one)} == {1}


def refused(world, asked):
    rows = world.outputs(asked)
    return len(rows) == 6 and all(row["reason"] and row["attempt"] == 0 for row in rows)


def test_a_killed_database_is_answered_503_and_delays_only(world):
    """An answer of 2xx means a row on the disk; without a database there is none, and the provider comes again."""
    before = world.pids()
    postgres = world.local.stack.postgres
    asked = [world.ask({**MANY, "webhook_life_s": 60.0}) for _ in range(4)]
    world.await_leased(asked[-1])  # the first may have been kept when the last is asked for

    postgres.kill()
    answer = send(world, b"{}", "msg_while_away")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    postgres.start()

    until(lambda: send(world, b"{}", "msg_when_back").status_code in (200, 202), "the receiver records again")
    finish(world, asked, before, seconds=120)  # leases are not freed in the database's first 30 s
    assert world.rows("SELECT 1 FROM deliveries WHERE webhook_id = 'msg_while_away'") == []


def finish(world, asked, before, *, seconds=90.0):
    """See every job succeed by the rules, with the processes that were there before."""
    world.await_end(*asked, seconds=seconds)
    for one in asked:
        assert world.job(one)["state"] == "succeeded"
        world.check(one)
    assert world.pids() == before
