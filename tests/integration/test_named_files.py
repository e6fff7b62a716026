"""Every file that an answer names: kept, recoverable, or noted with the reason why it is no output."""

import dataclasses
import json
import secrets
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

import providers
from db.audit import row_checks
from embedded.stack import Stack
from moorage import ids
from moorage.model import Registration, Wake
from tasks.jobs import create, replay
from tests.integration import chains
from tests.integration.core import World, database_of, prediction, world

FOREIGN = "https://cdn.evil.example/x.png"


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "named")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture
def at_fal(at: World) -> World:
    hosts = {"fal_queue_url": at.source.url(""), "fal_output_hosts": ("127.0.0.1",), "fal_user_id": ("me",)}
    settings = at.deps.settings.model_copy(update={**hosts, "fal_key": at.deps.settings.replicate_api_token})
    return dataclasses.replace(
        at, deps=dataclasses.replace(at.deps, settings=settings, providers=providers.load(settings))
    )


def delivered(at: World, payload: Any, request_id: str = "r1") -> UUID:
    delivery_id, body = ids.uuid7(), {"request_id": request_id, "status": "OK", "payload": payload}
    at.conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256) VALUES (%s, 'fal', %s, %s, '')",
        (delivery_id, secrets.token_hex(8), json.dumps(body).encode()),
    )
    return delivery_id


def registered_at_fal(at: World, **asked: Any) -> create.CreatedJob:
    given = Registration(provider="fal", external_id="r1", owner="ann", model="fal-ai/flux", **asked)
    return create.register_prediction(at.deps.database, at.deps.settings, at.deps.providers["fal"], given)


def notes(at: World, job_id: UUID) -> list[str]:
    sql = "SELECT reason FROM events WHERE subject = 'job' AND subject_id = %s AND from_state = to_state ORDER BY id"
    return [row["reason"] for row in at.conn.execute(sql, (job_id,)).fetchall()]


def audited(at: World, *row_ids: UUID) -> list[Any]:
    """Return what the audit finds in these rows."""
    args = {"ids": list(row_ids), "lease_seconds": 30.0, "overdue_seconds": 900.0}
    return [row for sql in row_checks.ROWS.values() for row in at.conn.execute(sql, args).fetchall()]


def test_the_files_of_all_shapes_are_kept(at_fal: World) -> None:
    """A list of URLs beside an object with a URL: three files, not one."""
    at = at_fal
    made = registered_at_fal(at)
    first, second, third = (at.source.picture(seed) for seed in range(3))

    at.step("ingest", delivered(at, {"images": [first, second], "preview": {"url": third}}))
    at.keep_all(made.job_id)

    paths = [at.row("outputs", output_id)["path"] for output_id in at.outputs(made.job_id)]
    assert paths == ["payload.images[0]", "payload.images[1]", "payload.preview.url"]
    assert at.one("SELECT count(*) FROM render_variants WHERE render_id = %s", made.job_id) == 3
    assert at.state("jobs", made.job_id) == "succeeded"


@pytest.mark.parametrize("partial", ["keep", "discard"])
def test_what_is_no_output_is_noted_and_changes_nothing(at_fal: World, partial: str) -> None:
    """Echoes, webhook URLs, running text and duplicates neither make a job partial nor discard its files."""
    at = at_fal
    made = registered_at_fal(at, partial=partial)
    picture = at.source.picture()
    payload = {
        "image": {"url": picture},
        "images": [picture],
        "input": {"image_url": at.source.url("/input.png")},
        "webhook_url": f"{at.deps.settings.public_url}/webhooks/fal?key=abc",
        "caption": f"see {FOREIGN}?token=secret, please",
    }

    at.step("ingest", delivered(at, payload))
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert len(at.outputs(made.job_id)) == 1
    assert at.letters() == []
    assert notes(at, made.job_id) == [
        f"payload.images[0] names the same file as payload.image.url: {picture}",
        f"payload.input.image_url repeats the request: {at.source.url('/input.png')}",
        f"payload.webhook_url repeats the request: {at.deps.settings.public_url}/webhooks/fal",
        f"payload.caption is part of a text: {FOREIGN}",
    ]


@pytest.mark.parametrize("partial", ["keep", "discard"])
def test_a_file_on_another_host_does_not_cost_the_others_and_can_be_replayed(at: World, partial: str) -> None:
    """It is a dead letter that names the host: once the host is allowed, the replay adds the file."""
    made = at.keeping([at.source.picture(1), FOREIGN], partial=partial)

    at.keep_all(made.job_id)

    kept, dead = at.outputs(made.job_id)
    (letter,) = at.letters(dead)
    assert at.state("jobs", made.job_id) == "succeeded"
    assert (at.state("outputs", kept), at.state("outputs", dead)) == ("kept", "dead")
    assert "cdn.evil.example is not allowed: add it to REPLICATE_OUTPUT_HOSTS" in letter["reason"]
    assert audited(at, made.job_id, made.prediction_id, kept, dead, letter["id"]) == []
    at.conn.execute("UPDATE outputs SET source = %s WHERE id = %s", (at.source.picture(2), dead))

    wake = replay.replay_dead_letter(at.conn, letter["id"], "cli")
    assert wake == Wake("keep", dead)
    at.step("keep", dead)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.one("SELECT count(*) FROM render_variants WHERE render_id = %s", made.job_id) == 2


def test_an_input_that_replicate_repeats_is_no_output(at: World) -> None:
    """The answer contains the input: an output with the same URL is not the model's."""
    made, given, picture = at.registered("p1"), at.source.picture(1), at.source.picture(2)
    body = prediction("p1", "succeeded", {"mask": picture, "source": given}, input={"image": given})

    at.step("ingest", at.delivered(body))
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert [at.row("outputs", one)["source"] for one in at.outputs(made.job_id)] == [picture]
    assert notes(at, made.job_id) == [f"output.source repeats the input: {given}"]


@pytest.mark.parametrize("output", [None, [], {}, "a text"])
def test_files_that_the_second_answer_has_are_kept(at: World, output: Any) -> None:
    """A status may be ahead of the list of files."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "succeeded", [at.source.picture()])

    wakes = at.step("ingest", at.delivered(prediction("p1", "succeeded", output)))
    assert wakes == [Wake("poll", made.prediction_id)]
    at.step("poll", made.prediction_id)
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"


def test_a_poll_without_files_is_repeated_once(at: World) -> None:
    """Soon: the fallback chain waits for the answer."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "succeeded", None)
    at.conn.execute("UPDATE predictions SET run_at = moment()")

    at.step("poll", made.prediction_id)
    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["raw_status"], row["was_without_files"]) == ("running", "succeeded", True)
    assert at.one("SELECT run_at <= moment() + interval '10 s' FROM predictions")
    at.conn.execute("UPDATE predictions SET run_at = moment()")
    at.step("poll", made.prediction_id)

    assert len(at.source.asked) == 2
    assert at.state("predictions", made.prediction_id) == "failed"
    assert "NO_OUTPUT" in at.row("jobs", made.job_id)["reason"]


@pytest.mark.parametrize("word", ["dreaming without files", "dreaming, to be polled"])
def test_no_word_of_a_provider_decides(at: World, word: str) -> None:
    """What was reported before, and whether a webhook asked for the poll, are columns: not the text of the status."""
    made = at.registered("p1")
    answers = (word, None), ("succeeded", None), (word, None), ("succeeded", [at.source.picture()])
    for status, output in answers:
        at.source.predictions["p1"] = prediction("p1", status, output)
        at.conn.execute("UPDATE predictions SET run_at = moment()")
        at.step("poll", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["ended_by"], row["was_without_files"]) == ("succeeded", "poll", False)


def test_a_success_without_files_past_the_deadline_is_not_awaited(at: World) -> None:
    """The last poll decides: no other will be sent."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "succeeded", None)

    with at.later("61 minutes") as then:
        then.step("poll", made.prediction_id)

        assert then.state("predictions", made.prediction_id) == "failed"


def test_files_reported_after_no_output_reopen_the_job(at: World) -> None:
    """A late success counts for a job that published nothing."""
    made = at.registered("p1")
    empty = prediction("p1", "succeeded", [])
    at.source.predictions["p1"] = empty
    at.step("ingest", at.delivered(empty))
    at.step("poll", made.prediction_id)
    assert at.state("jobs", made.job_id) == "failed"

    at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()])))
    at.keep_all(made.job_id)

    assert at.state("predictions", made.prediction_id) == "succeeded"
    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.row("jobs", made.job_id)["reopened"] == 1


@pytest.mark.parametrize(
    ("field", "count", "state"),
    [({"type": "string"}, 1, "succeeded"), ({"type": "string", "format": "uri"}, 2, "partial"), (None, 2, "succeeded")],
    ids=["a text", "a file", "no schema"],
)
def test_the_schema_of_a_model_decides_about_another_host(at: World, field: Any, count: int, state: str) -> None:
    """A text that is a link is no file; a declared file that cannot be kept makes its job partial."""
    made = at.registered("p1")
    body = prediction("p1", "succeeded", {"image": at.source.picture(), "link": FOREIGN}, model="owner/name")
    if field is not None:
        schemas = {"Output": {"type": "object", "properties": {"link": field}}}
        version = {"latest_version": {"openapi_schema": {"components": {"schemas": schemas}}}}
        at.source.files["/v1/models/owner/name"] = (200, json.dumps(version).encode())

    at.step("ingest", at.delivered(body))
    at.keep_all(made.job_id)

    assert "/v1/models/owner/name" in at.source.asked
    assert len(at.outputs(made.job_id)) == len(at.letters()) + 1 == count
    assert at.state("jobs", made.job_id) == state


def test_a_clear_answer_asks_for_no_schema(at: World) -> None:
    """One request less for nearly every webhook."""
    made = at.registered("p1")

    at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()], model="owner/name")))

    assert at.state("jobs", made.job_id) == "keeping"
    assert at.source.asked == []


def test_an_input_of_the_job_request_is_no_output(at: World) -> None:
    """moorage knows what it submitted, also where the provider's answer does not repeat it."""
    given, picture = at.source.picture(1), at.source.picture(2)
    chain = [{"provider": "replicate", "model": "m", "input": {"images": [given]}, "seconds": 60.0}]
    job_id = chains.started(at, 1, chain=chain)
    _, external_id = chains.running(at, job_id)

    chains.hear(at, external_id, "succeeded", [picture, given])
    at.keep_all(job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert [at.row("outputs", one)["source"] for one in at.outputs(job_id)] == [picture]
    assert notes(at, job_id) == [f"output[1] repeats the input: {given}"]


def test_files_reported_after_the_next_entry_was_published_are_late(at: World) -> None:
    """The chain goes on after the second answer without files; what comes then changes no published job."""
    job_id = chains.started(at, 2)
    first, external_id = chains.running(at, job_id)
    at.source.predictions[external_id] = prediction(external_id, "succeeded", [])
    (wake,) = chains.hear(at, external_id, "succeeded", None)
    at.step(wake.step, wake.row_id)
    _, other_id = chains.running(at, job_id)
    chains.hear(at, other_id, "succeeded", [at.source.picture()])
    at.keep_all(job_id)

    chains.hear(at, external_id, "succeeded", [at.source.picture()])

    assert at.state("jobs", job_id) == "succeeded"
    assert len(at.outputs(job_id)) == 1
    assert at.row("predictions", first)["reason"] == "late: the job was succeeded already"
