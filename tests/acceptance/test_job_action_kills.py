"""Processes killed while an application cancels a job or retries it: it is done once, and nothing is left over."""

import contextlib

import pytest
import requests

from tests.acceptance.api_caller import application, entry, tries
from tests.acceptance.test_failpoint_crashes import mended
from tests.acceptance.world import Asked, until


def sent(shop, path):
    """Ask for it; no answer comes from a process that dies."""
    with contextlib.suppress(requests.ConnectionError):
        shop.ask("POST", path)


@pytest.mark.parametrize("point", ["cancel.after_commit", "poll.before_cancel", "poll.after_cancel"])
def test_a_cancelled_job_is_stopped_at_its_provider_whoever_dies(world, point):
    """To be asked twice does a provider no harm; not to be asked costs money."""
    shop = application(world)
    job_id = shop.order(entry(seconds=60.0, status="processing"))
    until(lambda: tries(shop.get(f"/jobs/{job_id}")) == [("replicate", "running")], "it runs at the provider")
    world.arm(point)

    sent(shop, f"/jobs/{job_id}/cancel")
    until(lambda: not world.is_armed(point), f"a crash at {point}")
    mended(world)

    job = shop.await_state(job_id, "cancelled")
    stopped = until(lambda: tries(shop.get(f"/jobs/{job_id}")) == [("replicate", "cancelled")], "it was stopped")
    assert stopped
    assert world.standin.get_prediction(job["predictions"][0]["external_id"])["status"] == "canceled"
    assert shop.ask("POST", f"/jobs/{job_id}/cancel").status_code == 200


def test_a_job_is_tried_again_once_though_its_answer_was_lost(world):
    """Whoever heard no answer asks again, and is told that the job is open or over."""
    shop = application(world)
    job_id = shop.order(entry("openai", submit="no_credit", submit_times=1))
    shop.await_end(job_id)
    world.arm("retry.after_commit")

    sent(shop, f"/jobs/{job_id}/retry")
    until(lambda: not world.is_armed("retry.after_commit"), "a crash behind the commit of a retry")
    mended(world)
    again = shop.ask("POST", f"/jobs/{job_id}/retry")

    job = shop.await_state(job_id, "succeeded")
    assert again.status_code == 409
    assert (tries(job), job["reopened"]) == ([("openai", "failed"), ("openai", "succeeded")], 1)
    world.check(Asked(job["predictions"][-1]["external_id"], job_id))
