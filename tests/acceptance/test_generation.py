"""The life of a generation over HTTP: submit, fall back, stand in for nothing, cancel and try again."""

import uuid

from tests.acceptance.api_caller import application, entry, tries
from tests.acceptance.world import Asked, until

NEVER_ENDS = {"status": "processing"}


def test_where_one_times_out_and_one_is_broken_the_third_brings_the_render(world):
    """Three providers in turn, one render, and a history that says what became of each."""
    shop = application(world)

    job_id = shop.order(
        entry("replicate", seconds=3, **NEVER_ENDS),
        entry("fal", seconds=3, model="standin/broken"),  # its webhook could still tell, so its time is waited for
        entry("openai", outputs=2),
    )
    job = shop.await_end(job_id)

    assert (job["state"], job["variants_created"]) == ("succeeded", 2)
    assert [one["provider"] for one in job["predictions"]] == ["replicate", "fal", "openai"]
    stopped, broken, chosen = job["predictions"]
    assert chosen["state"] == "succeeded"
    assert stopped["state"] in ("abandoned", "cancelled")
    assert broken["state"] == "abandoned"
    assert broken["message"].startswith("submit uncertain: ")
    assert [one["is_placeholder"] for one in job["variants"]] == [False, False]
    (render,) = shop.get(f"/renders?owner={shop.owner}")["renders"]
    assert [one["url"] for one in render["variants"]] == [one["url"] for one in job["variants"]]


def test_a_placeholder_stands_in_until_the_first_ones_late_success(world):
    """The project can be finished without a picture; a late picture takes the placeholder's place alone."""
    shop, scene = application(world), {"id": "hall"}
    project = f"/projects/p-{uuid.uuid4().hex[:8]}"
    document = {"scenes": [scene]}
    assert shop.ask("PUT", project, json={"owner": shop.owner, "document": document}).status_code == 201
    late = entry("replicate", seconds=3, outputs=2, **NEVER_ENDS)

    job_id = shop.order(
        late,
        entry("fal", model="standin/failing", status="failed"),
        entry("openai", submit="invalid"),
        placeholder=True,
        project_id=project.removeprefix("/projects/"),
        scene="hall",
    )
    stood_in = shop.await_state(job_id, "partial")
    shown = shop.get(project)

    assert tries(stood_in)[:3] == [("replicate", "abandoned"), ("fal", "failed"), ("openai", "failed")]
    assert [(one["idx"], one["is_placeholder"], one["is_cover"]) for one in stood_in["variants"]] == [(0, True, True)]
    assert stood_in["reason"].startswith("placeholder: ")
    assert (shown["status"], shown["progress"]["placeholders"]) == ("assets_generated", 1)
    assert urls_of(shown) == [stood_in["variants"][0]["url"]]

    world.standin.end_prediction(stood_in["predictions"][0]["external_id"])
    job = until(lambda: real(shop.get(f"/jobs/{job_id}")), "the late success is published")

    assert [(one["idx"], one["is_placeholder"], one["is_cover"]) for one in job["variants"]] == [
        (1, False, True),
        (2, False, False),
    ]
    assert urls_of(shop.get(project)) == [one["url"] for one in job["variants"]]
    assert shop.get(project)["progress"]["placeholders"] == 0
    (render,) = shop.get(f"/renders?owner={shop.owner}")["renders"]
    assert (render["cover_idx"], len(render["variants"])) == (1, 2)


def urls_of(project):
    """Return the one scene's URLs, the same in what was generated and in the document."""
    (generated,) = project["generated_output"]["scenes"]
    (written,) = project["document"]["scenes"]
    assert written["imageUrls"] == generated["imageUrls"]
    return written["imageUrls"]


def real(job):
    return job if job["state"] == "succeeded" else None


def test_an_order_that_is_sent_again_under_its_key_makes_one_job(world):
    """An application whose connection broke asks again without fear; another order under that key is an error."""
    shop, key = application(world), {"Idempotency-Key": uuid.uuid4().hex}
    body = {"owner": shop.owner, "chain": [entry()]}

    answers = [shop.ask("POST", "/jobs", json=body, headers=key) for _ in range(3)]
    other = shop.ask("POST", "/jobs", json={**body, "prompt": "another"}, headers=key)

    assert [answer.status_code for answer in answers] == [202, 200, 200]
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert other.status_code == 409
    job = shop.await_end(answers[0].json()["job_id"])
    assert tries(job) == [("replicate", "succeeded")]
    assert len(shop.get(f"/jobs?owner={shop.owner}")["jobs"]) == 1


def test_a_wrong_order_is_refused_before_anything_is_stored(world):
    """Whoever asks for nothing shall hear it at once, with the field by its name."""
    shop = application(world)
    wrong = entry()
    wrong["input"]["num_outputs"] = 99

    answers = [
        shop.ask("POST", "/jobs", json={"owner": shop.owner, "chain": chain})
        for chain in ([], [{**entry(), "input": {}}], [{**entry(), "provider": "nobody"}], [wrong])
    ]

    assert [answer.status_code for answer in answers] == [422] * 4
    named = [answer.json()["errors"][0]["field"] for answer in answers]
    assert named == ["chain", "chain[0].input", "chain[0].provider", "chain[0].input.num_outputs"]
    assert shop.get(f"/jobs?owner={shop.owner}")["jobs"] == []


def test_a_running_job_that_is_cancelled_is_stopped_at_its_provider(world):
    """What nobody wants any more shall not go on costing money."""
    shop = application(world)
    job_id = shop.order(entry(**NEVER_ENDS))
    until(lambda: tries(shop.get(f"/jobs/{job_id}")) == [("replicate", "running")], "it runs at the provider")

    answer = shop.ask("POST", f"/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    job = until(lambda: stopped(shop.get(f"/jobs/{job_id}")), "the provider has stopped it")
    (prediction,) = job["predictions"]
    assert world.standin.get_prediction(prediction["external_id"])["status"] == "canceled"
    assert (job["state"], job["variants"], job["render_id"]) == ("cancelled", [], None)
    assert shop.ask("POST", f"/jobs/{job_id}/cancel").status_code == 200


def stopped(job):
    return job if job["predictions"][0]["state"] == "cancelled" else None


def test_a_failed_job_that_is_tried_again_begins_its_chain_anew(world):
    """A provider's bad minute shall not cost the application its job."""
    shop = application(world)
    job_id = shop.order(entry("openai", submit="no_credit", submit_times=1))
    failed = shop.await_end(job_id)

    answer = shop.ask("POST", f"/jobs/{job_id}/retry")
    job = shop.await_state(job_id, "succeeded")

    assert (failed["state"], failed["category"]) == ("failed", "BILLING_FAILED")
    assert (answer.status_code, answer.json()["was"]) == (202, "failed")
    assert (tries(job), job["reopened"]) == ([("openai", "failed"), ("openai", "succeeded")], 1)
    assert job["variants_created"] == 1


def test_what_is_published_is_what_the_provider_made(world):
    """Over every way to order: rows, objects and edges against the provider's own ledger."""
    shop = application(world)

    job_ids = [shop.order(entry(name, outputs=2)) for name in ("replicate", "fal", "openai")]
    jobs = [shop.await_end(job_id) for job_id in job_ids]

    assert [(job["state"], job["variants_created"]) for job in jobs] == [("succeeded", 2)] * 3
    for job in jobs:
        world.check(Asked(job["predictions"][0]["external_id"], job["job_id"]))
