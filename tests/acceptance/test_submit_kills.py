"""
Submissions through the real processes, killed at every point: nothing ordered is lost, and nothing is published twice.
"""

import itertools
import uuid

import pytest
import requests

from tests.acceptance.retry_503 import patient
from tests.acceptance.test_failpoint_crashes import crashed, mended
from tests.acceptance.world import Asked, until

ROUNDS = [pytest.param(number, marks=[pytest.mark.prove] * (number > 0)) for number in range(20)]
MODELS = {"replicate": "standin/pictures", "fal": "standin/pictures", "openai": "gpt-image-1"}
SEEDS = itertools.count(1)  # the stand-in counts the faults of equal orders
POINTS = ("submit.before_claim", "submit.after_claim", "submit.after_commit", "lookup.after_answer")
# Beside another point of the same step in `make test`.
PROVE = ("submit.before_claim", "publish.before_submit", "generate.before_claim", "publish.before_generate")


def cases(*points):
    return [pytest.param(point, marks=[pytest.mark.prove] * (point in PROVE)) for point in points]


def entry(provider="replicate", seconds=60.0, **script):
    given = {"duration_s": 0.5, "outputs": 2, "formats": ["png"], "seed": next(SEEDS), **script}
    asked = {"prompt": f"a boat of {uuid.uuid4().hex}", "standin": given}  # no other order has this prompt
    return {"provider": provider, "model": MODELS[provider], "input": asked, "seconds": seconds}


def order(world, *chain):
    """Ask for a job as an application does."""
    asked = {"owner": "o1", "kind": "image", "chain": list(chain)}
    answer = patient(lambda: requests.post(f"{world.local.url}/v1/jobs", json=asked, headers=world.token, timeout=30))
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["job_id"]
    return Asked("", job_id)


def tries(world, asked):
    return world.rows("SELECT * FROM predictions WHERE job_id = %(id)s ORDER BY seq", id=asked.job_id)


def await_end(world, asked, seconds=90.0):
    live = "SELECT 1 FROM jobs WHERE id = %(id)s AND run_at IS NOT NULL"
    until(lambda: not world.rows(live, id=asked.job_id), f"the end of {asked.job_id}", seconds=seconds)


def check(world, asked):
    """Hold a finished job to one publication of what was made."""
    job = world.job(asked)
    assert (job["state"], job["reason"]) == ("succeeded", None)
    (chosen,) = [row for row in tries(world, asked) if row["id"] == job["chosen_id"]]
    world.check(Asked(chosen["external_id"], asked.job_id))


def made(world, *chain):
    """Return how many predictions the stand-in has made for the entries of a chain."""
    return sum(len(world.standin.list_created(prompt=one["input"]["prompt"])) for one in chain)


def under_way(world, *chain):
    """Return a job whose first try has begun."""
    asked = order(world, *chain)
    until(lambda: [row for row in tries(world, asked) if row["state"] != "planned"], "the first try is under way")
    return asked


@pytest.mark.parametrize("point", cases(*POINTS))
def test_a_crash_of_a_worker_makes_one_prediction_of_an_order(world, point):
    """With a list nothing is lost and nothing doubled, not even a prediction."""
    looked = point.startswith("lookup")
    only = entry(**({"submit": "lost", "submit_times": 1, "webhook": "missing"} if looked else {}))
    world.arm(point)

    asked = order(world, only)
    until(lambda: not world.is_armed(point), f"a crash at {point}")
    await_end(world, asked, seconds=180)

    check(world, asked)
    assert made(world, only) == 1


@pytest.mark.parametrize(("provider", "webhook"), [("replicate", "ok"), ("replicate", "missing"), ("fal", "ok")])
@pytest.mark.parametrize("number", ROUNDS)
def test_killed_between_an_order_and_its_answer_nothing_is_lost_or_doubled(world, number, provider, webhook):
    """It was made, moorage does not know: its webhook or Replicate's list tells, and nothing is ordered again."""
    only = entry(provider, webhook=webhook)
    world.arm("submit.after_answer")

    asked = order(world, only)
    until(lambda: not world.is_armed("submit.after_answer"), "a crash")
    await_end(world, asked)

    check(world, asked)
    assert [row["state"] for row in tries(world, asked)] == ["succeeded"]
    assert made(world, only) == 1


@pytest.mark.parametrize(("provider", "webhook"), [("fal", "missing"), ("openai", "ok")])
@pytest.mark.parametrize("number", ROUNDS)
def test_where_nothing_tells_an_uncertain_try_stands_in_the_history_and_one_result_is_published(
    world, number, provider, webhook
):
    """Nobody can say whether it was made; the chain goes on, and whatever comes late is not published beside it."""
    world.arm("submit.after_answer")

    asked = order(world, entry(provider, seconds=5, webhook=webhook), entry())
    until(lambda: not world.is_armed("submit.after_answer"), "a crash")
    await_end(world, asked)

    first, *_ = tries(world, asked)
    assert world.rows("SELECT 1 FROM predictions WHERE id = %(id)s AND submit_uncertain", id=first["id"])
    check(world, asked)
    variants = world.rows("SELECT idx FROM variants WHERE render_id = %(id)s", id=asked.job_id)
    assert len(variants) == 2


@pytest.mark.parametrize("point", cases("publish.before_submit", "publish.after_submit"))
def test_a_crash_while_the_next_entry_is_woken_delays_it_only(world, point):
    """The row says what is to be done; the wake is a convenience."""
    asked = crashed(world, point, lambda: under_way(world, entry(submit="invalid", submit_s=2.0), entry()))
    mended(world)
    await_end(world, asked)

    check(world, asked)
    assert [row["state"] for row in tries(world, asked)] == ["failed", "succeeded"]


@pytest.mark.parametrize(
    "point", cases("generate.before_claim", "generate.after_claim", "publish.before_generate", "publish.after_generate")
)
def test_a_crash_before_a_generation_began_costs_nothing(world, point):
    """Nothing was sent: another worker sends it, once."""
    chains = []

    def begin():
        chains.append((entry(submit="invalid", submit_s=2.0), entry("openai")))
        return under_way(world, *chains[-1])

    asked = crashed(world, point, begin)
    await_end(world, asked)

    check(world, asked)
    assert made(world, *chains[-1]) == 1
