"""Many predictions of one owner or provider do not hold up another's, on the running system."""

import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest

from db.reports import metrics
from tests.acceptance.api_caller import Caller, application, entry
from tests.acceptance.world import World, until

BRIEF = {"status": "failed", "webhook": "ok"}  # without files, which are not what is measured
NEVER_ENDS = {"status": "processing"}
SIZES = [(30, 6), pytest.param(1000, 20, marks=pytest.mark.prove)]


def order_all(caller: Caller, count: int, provider: str, **script: object) -> None:
    """Request so many jobs, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: caller.order(entry(provider, seconds=600, **script)), range(count)))


def cancel_rest(world: World, caller: Caller) -> None:
    """Cancel what an owner still has open, and wait for the end of what runs."""
    rows = world.rows("SELECT id FROM jobs WHERE owner = %(owner)s AND state = 'open'", owner=caller.owner)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: caller.ask("POST", f"/jobs/{row['id']}/cancel"), rows))
    live = "SELECT FROM predictions p JOIN jobs j ON j.id = p.job_id WHERE j.owner = %(owner)s AND p.run_at IS NOT NULL"
    until(lambda: not world.rows(live, owner=caller.owner), "the end of all its predictions", seconds=240)
    waiting = "SELECT FROM notifications WHERE state = 'waiting'"  # they would share the queue with the next ones
    until(lambda: not world.rows(waiting), "the end of all notifications", seconds=240)


def submitted(world: World, since: str, **owners: str) -> list[str]:
    """Return the owners of what was submitted since the first request of one of them, in order."""
    sql = """
        SELECT j.owner, p.submitted_at FROM predictions p JOIN jobs j ON j.id = p.job_id
         WHERE j.owner = ANY(%(owners)s) AND p.submitted_at > (SELECT min(created_at) FROM jobs WHERE owner = %(since)s)
         ORDER BY p.submitted_at"""
    names = {owner: name for name, owner in owners.items()}
    return [names[row["owner"]] for row in world.rows(sql, owners=list(names), since=since)]


def waits(world: World, caller: Caller, count: int) -> list[float]:
    """Return how long each prediction of an owner waited until it was submitted, once all are."""
    sql = """
        SELECT extract(epoch FROM p.submitted_at - p.created_at)::float AS seconds
          FROM predictions p JOIN jobs j ON j.id = p.job_id
         WHERE j.owner = %(owner)s AND p.submitted_at IS NOT NULL"""
    until(lambda: len(world.rows(sql, owner=caller.owner)) == count, f"{count} submissions", seconds=240)
    return [row["seconds"] for row in world.rows(sql, owner=caller.owner)]


@pytest.mark.parametrize(("many", "few"), SIZES)
def test_a_few_requests_are_among_the_first_after_they_arrive(world: World, many: int, few: int) -> None:
    """Whoever orders a thousand pictures does not decide when somebody else sees the first."""
    ann, bob = application(world), application(world)
    order_all(ann, many, "replicate", duration_s=1.0, **BRIEF)
    order_all(bob, few, "replicate", duration_s=1.0, **BRIEF)
    waits(world, bob, few)

    order = submitted(world, bob.owner, ann=ann.owner, bob=bob.owner)
    cancel_rest(world, ann)

    assert order[: 2 * few + 5].count("bob") == few, order


@pytest.mark.parametrize(("many", "few"), SIZES)
def test_a_full_provider_holds_up_no_other(world: World, many: int, few: int) -> None:
    """Its places are taken for ever, and all the others are submitted; what waits for a place is not overdue."""
    ann, bob = application(world), application(world)
    order_all(ann, many, "fal", **NEVER_ENDS)

    order_all(bob, few, "replicate", duration_s=0.5, **BRIEF)
    waits(world, bob, few)

    planned = "SELECT count(*) AS n FROM predictions WHERE owner = %(owner)s AND state = 'planned'"
    assert world.one(planned, owner=ann.owner)["n"] == many - 10
    world.rows("UPDATE predictions SET run_at = run_at - interval '1 h' WHERE state = 'planned' RETURNING id")
    assert float(world.rows(metrics.OLDEST_DUE_BY_TABLE["predictions"])[0]["value"]) < 300
    cancel_rest(world, ann)


@pytest.mark.prove
def test_behind_a_full_provider_another_waits_as_long_as_alone(world: World) -> None:
    """Within a fifth: the same twenty, three times each way, by the mean of their waits."""
    ann, means = application(world), []
    for is_beside in (False, True):
        if is_beside:
            order_all(ann, 1000, "fal", **NEVER_ENDS)
        found: list[float] = []
        for _ in range(3):
            bob = application(world)
            order_all(bob, 20, "replicate", duration_s=5.0, **BRIEF)
            found += waits(world, bob, 20)
            cancel_rest(world, bob)
        means.append(statistics.mean(found))
    cancel_rest(world, ann)

    assert means[1] <= 1.2 * means[0], means
