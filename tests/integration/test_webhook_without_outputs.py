"""A webhook that tells of an end without the files: the poll it causes brings them, or a dead letter says why not."""

import base64
import dataclasses
import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

import providers
from embedded.stack import Stack
from moorage import ids
from moorage.model import Registration, Wake
from tasks.jobs import create
from tests.integration.core import World, database_of, png, world

APP = "/fal-ai/flux/requests/r1"
THIN = {"request_id": "r1", "status": "OK", "payload": None, "payload_error": "too large"}


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "fetch")


@pytest.fixture
def plain(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def asking(at: World, **given: Any) -> World:
    """Return the world with providers that ask its source."""
    hosts = {"fal_queue_url": at.source.url(""), "fal_output_hosts": ("127.0.0.1",), "fal_user_id": ("me",)}
    settings = at.deps.settings.model_copy(update={**hosts, **given})
    return dataclasses.replace(
        at, deps=dataclasses.replace(at.deps, settings=settings, providers=providers.load(settings))
    )


@pytest.fixture
def at(plain: World) -> World:
    return asking(plain, fal_key=plain.deps.settings.replicate_api_token)


def registered(at: World, provider: str = "fal", external_id: str = "r1", **asked: Any) -> create.CreatedJob:
    given = Registration(provider=provider, external_id=external_id, owner="ann", **{"model": "fal-ai/flux", **asked})
    return create.register_prediction(at.deps.database, at.deps.settings, at.deps.providers[provider], given)


def delivered(at: World, body: dict[str, Any], provider: str = "fal") -> UUID:
    delivery_id = ids.uuid7()
    at.conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256) VALUES (%s, %s, %s, %s, '')",
        (delivery_id, provider, secrets.token_hex(8), json.dumps(body).encode()),
    )
    return delivery_id


def completed(at: World, *urls: str) -> None:
    payload = {"images": [{"url": one} for one in urls]}
    at.source.files |= {
        f"{APP}/status": (200, b'{"status": "COMPLETED"}'),
        APP: (200, json.dumps(payload).encode()),
    }


def test_a_webhook_without_its_files_has_them_fetched_at_once(at: World) -> None:
    """Not NO_OUTPUT: the files are there, one request away."""
    made, delivery = registered(at), delivered(at, THIN)
    completed(at, at.source.picture())

    wakes = at.step("ingest", delivery)

    assert wakes == [Wake("poll", made.prediction_id)]
    assert at.row("deliveries", delivery)["reason"] == "OK: polling for the complete response"
    assert (at.state("deliveries", delivery), at.state("jobs", made.job_id)) == ("applied", "open")
    assert [w.step for w in at.step("poll", made.prediction_id)] == ["keep"]
    at.keep_all(made.job_id)
    assert at.state("jobs", made.job_id) == "succeeded"


def test_a_lost_wake_costs_nothing(at: World) -> None:
    """The row itself is due: dispatch finds it without any message."""
    made = registered(at)
    at.step("ingest", delivered(at, THIN))

    assert at.one("SELECT run_at <= moment() FROM predictions WHERE id = %s", made.prediction_id)


def test_a_duplicate_of_it_after_the_end_asks_nothing(at: World) -> None:
    """Providers send twice."""
    made = registered(at)
    completed(at, at.source.picture())
    at.step("ingest", delivered(at, THIN))
    at.step("poll", made.prediction_id)
    again = delivered(at, THIN)

    assert at.step("ingest", again) == []
    assert at.state("deliveries", again) == "ignored"


def test_a_late_one_for_an_abandoned_prediction_still_brings_its_files(at: World) -> None:
    """The files are paid for."""
    made = registered(at)
    at.source.files[f"{APP}/status"] = (202, b'{"status": "IN_PROGRESS"}')

    with at.later("61 minutes") as then:
        then.step("poll", made.prediction_id)
        assert then.state("predictions", made.prediction_id) == "abandoned"
        completed(at, at.source.picture())
        then.step("ingest", delivered(then, THIN))
        then.step("poll", made.prediction_id)
        then.keep_all(made.job_id)

        assert then.state("jobs", made.job_id) == "succeeded"


def test_where_nobody_can_be_asked_it_is_a_dead_letter_that_can_be_replayed(plain: World) -> None:
    """The reason says what is missing; once it is set, the replay takes the same path."""
    at = asking(plain)
    made = registered(at)

    at.step("ingest", delivered(at, THIN))

    (letter,) = at.letters()
    assert at.state("predictions", made.prediction_id) == "lost"
    assert at.row("jobs", made.job_id)["category"] == "PROVIDER_FAILED"
    assert letter["retryable"]
    assert "cannot be polled: too large" in letter["reason"]


def test_a_poll_knows_the_model_that_was_registered(at: World) -> None:
    """fal's addresses name it."""
    made = registered(at, model="workflows/me/flow")
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (made.prediction_id,))

    at.step("poll", made.prediction_id)

    assert at.source.asked == ["/workflows/me/flow/requests/r1/status"]


def test_a_dead_url_is_renewed_at_the_address_of_the_model(at: World) -> None:
    """The keep step asks as well."""
    made = registered(at)
    body = {"request_id": "r1", "status": "OK", "payload": {"images": [{"url": at.source.broken()}]}}
    at.step("ingest", delivered(at, body))
    completed(at, at.source.picture())

    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"


# --- OpenAI -----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_openai(plain: World) -> World:
    return asking(plain, openai_api_url=plain.source.url(""), openai_api_key=plain.deps.settings.replicate_api_token)


def event(kind: str) -> dict[str, Any]:
    return {"id": "evt_1", "object": "event", "type": kind, "data": {"id": "resp_1"}}


def answered(at: World, **fields: Any) -> None:
    body = {"id": "resp_1", "object": "response", **fields}
    at.source.files["/v1/responses/resp_1"] = (200, json.dumps(body).encode())


def test_the_pictures_of_a_thin_event_are_fetched_and_kept(at_openai: World) -> None:
    """The whole way: an event that names a response, the response, its base64, the render."""
    at = at_openai
    made = registered(at, "openai", "resp_1")
    pictures = [base64.b64encode(png(seed)).decode() for seed in (1, 2)]
    answered(at, status="completed", output=[{"type": "image_generation_call", "result": one} for one in pictures])

    (wake,) = at.step("ingest", delivered(at, event("response.completed"), "openai"))
    at.step(wake.step, wake.row_id)
    at.keep_all(made.job_id)

    assert at.source.asked == ["/v1/responses/resp_1"]
    assert at.state("jobs", made.job_id) == "succeeded"
    assert [at.row("outputs", one)["sha256"] for one in at.outputs(made.job_id)] == [
        hashlib.sha256(png(seed)).hexdigest() for seed in (1, 2)
    ]


def test_a_failure_told_by_a_thin_event_gets_its_reason(at_openai: World) -> None:
    """A failure without a reason helps nobody."""
    at = at_openai
    made = registered(at, "openai", "resp_1")
    answered(at, status="failed", error={"code": "moderation_blocked", "message": "rejected by the safety system"})

    (wake,) = at.step("ingest", delivered(at, event("response.failed"), "openai"))
    at.step(wake.step, wake.row_id)

    assert at.row("jobs", made.job_id)["reason"] == "rejected by the safety system"


def test_a_response_that_openai_no_longer_knows_is_a_dead_letter(at_openai: World) -> None:
    """It was not stored: its files are gone, and somebody must hear of it."""
    at = at_openai
    made = registered(at, "openai", "resp_1")

    (wake,) = at.step("ingest", delivered(at, event("response.completed"), "openai"))
    at.step(wake.step, wake.row_id)
    assert at.letters() == []  # the first 404 may be that of a new one
    at.conn.execute("UPDATE predictions SET run_at = moment()")
    at.step(wake.step, wake.row_id)

    (letter,) = at.letters(made.prediction_id)
    assert "404" in letter["reason"]


def test_an_event_that_is_not_ours_is_ignored_with_its_name(at_openai: World) -> None:
    """A project's webhooks tell of batches and calls too: no dead letters for those."""
    delivery = delivered(at_openai, event("batch.completed"), "openai")

    assert at_openai.step("ingest", delivery) == []

    assert at_openai.state("deliveries", delivery) == "ignored"
    assert "batch.completed" in at_openai.row("deliveries", delivery)["reason"]
    assert at_openai.letters() == []


def test_without_a_key_a_thin_event_is_a_dead_letter_that_names_it(plain: World) -> None:
    """The one setting that is missing."""
    at = asking(plain)
    registered(at, "openai", "resp_1")

    at.step("ingest", delivered(at, event("response.completed"), "openai"))

    (letter,) = at.letters()
    assert letter["reason"].endswith("set OPENAI_API_KEY")
