"""Watching a generation: one owner's rows alone, the stream of events, and a signed webhook at the end."""

import contextlib
import json
import time

import requests
from standardwebhooks import Webhook

from tests.acceptance.api_caller import application as shop_of
from tests.acceptance.api_caller import entry, owner
from tests.acceptance.conftest import NOTIFY_SECRET
from tests.acceptance.world import until


def test_another_owners_everything_is_not_there(world):
    """Who guesses an id learns no more than from one that never was."""
    ada, eve = owner(world), owner(world)
    upload_id = ada.ask("POST", "/uploads", data=picture_of(ada)).json()["upload_id"]
    project_id = f"p-{ada.owner}"
    assert ada.ask("PUT", f"/projects/{project_id}", json={"document": {"scenes": []}}).status_code == 201
    job_id = ada.order(entry(), project_id=project_id)
    ada.await_end(job_id)

    reads = [f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/renders/{job_id}", f"/uploads/{upload_id}"]
    reads.append(f"/projects/{project_id}")
    acts = [("POST", f"/jobs/{job_id}/cancel"), ("POST", f"/jobs/{job_id}/retry"), ("DELETE", f"/renders/{job_id}")]
    acts.append(("DELETE", f"/uploads/{upload_id}"))

    assert [ada.ask("GET", path).status_code for path in reads] == [200] * len(reads)
    assert [eve.ask("GET", path).status_code for path in reads] == [404] * len(reads)
    assert [eve.ask(method, path).status_code for method, path in acts] == [404] * len(acts)
    assert [eve.get(path)[path[1:]] for path in ("/jobs", "/renders")] == [[], []]
    assert eve.ask("GET", f"/jobs?owner={ada.owner}").status_code == 403
    assert eve.ask("POST", "/jobs", json={"owner": ada.owner, "chain": [entry()]}).status_code == 403
    assert eve.ask("POST", "/tokens", json={"name": "mine"}).status_code == 403
    assert ada.get(f"/renders/{job_id}")["render_id"] == job_id


def picture_of(caller):
    """Return the bytes of a small picture, from a render of the owner's own."""
    job = caller.await_end(caller.order(entry("openai")))
    return requests.get(job["variants"][0]["url"], timeout=30).content


def test_the_stream_tells_an_owner_of_a_job_from_its_beginning_to_its_end(world):
    """The page shows what arrives without asking over and over; nothing of anybody else's stands in it."""
    ada, eve = owner(world), owner(world)

    with stream(ada) as events:
        other = eve.order(entry("openai"))
        job_id = ada.order(entry(submit="busy", submit_times=1, retry_after_s=0.5, duration_s=2.0), entry("openai"))
        told = list(until_end(events, job_id))

    edges = [(one["subject"], one["to_state"]) for one in told if one["job_id"] == job_id]
    assert other not in {one["job_id"] for one in told}
    assert [to for subject, to in edges if subject == "job"] == ["open", "keeping", "succeeded"]
    tried = [to for subject, to in edges if subject == "prediction"]
    assert tried == ["planned", "submitting", "planned", "submitting", "running", "succeeded"]
    assert ("output", "kept") in edges
    assert [one["id"] for one in told] == sorted({one["id"] for one in told})


@contextlib.contextmanager
def stream(caller):
    """Give the events of an owner's stream, as they come."""
    headers = {"Authorization": f"Bearer {caller.token}"}
    url = f"{caller.world.local.url}/v1/events"
    with requests.get(url, headers=headers, stream=True, timeout=90) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
        assert next(lines).startswith(":")  # it has begun: what comes from now on is told
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def until_end(events, job_id, seconds=90.0):
    """Yield events up to the one that ends a job."""
    deadline = time.monotonic() + seconds
    for event in events:
        assert time.monotonic() < deadline
        yield event
        if event["job_id"] == job_id and event["subject"] == "job" and event["to_state"] == "succeeded":
            return


def test_the_application_is_told_of_each_end_by_a_signed_webhook(world, application):
    """It need not ask: of the failure, and of the success after it, in an order it can see."""
    shop = shop_of(world)
    job_id = shop.order(entry("openai", submit="invalid", submit_times=1))
    until(lambda: application.of(job_id), "the failure was told")
    shop.ask("POST", f"/jobs/{job_id}/retry")
    job = shop.await_state(job_id, "succeeded")

    heard = until(lambda: both(application, job_id), "both ends were told")

    bodies = [Webhook(NOTIFY_SECRET).verify(one.raw, one.headers) for one in heard]
    told = sorted(bodies, key=lambda body: body["data"]["sequence"])
    assert [(body["type"], body["data"]["reopened"]) for body in told] == [("job.failed", 0), ("job.succeeded", 1)]
    assert [one["url"] for one in told[1]["data"]["variants"]] == [one["url"] for one in job["variants"]]


def both(listening, job_id):
    heard = listening.of(job_id)
    return heard if len(heard) >= 2 else None
