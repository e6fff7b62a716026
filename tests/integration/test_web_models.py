"""Models, their schemas, and job requests validated against them, with the stand-in provider."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from db import uploads
from db.connection import connect
from embedded.proxy import Proxy
from moorage import ids
from moorage.model import Media
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp
from tests.support.standin import Standin


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def front(url: str, standin: Standin) -> Iterator[wp.Front]:
    with wp.running(url, **standin.environment()) as process:
        yield process


def order(front: wp.Front, given: dict[str, Any], *, model: str = "standin/pictures", **fields: Any) -> wp.Answer:
    body = {"owner": "ada", "chain": [{"provider": "replicate", "model": model}], "input": given, **fields}
    headers = {**wp.BEARER, "content-type": "application/json"}
    return front.ask("POST", "/v1/jobs", json.dumps(body).encode(), headers)


def test_models_are_listed_by_kind_with_what_they_accept(front: wp.Front) -> None:
    """An application offers its users the available models, without a client for each provider."""
    videos = front.get("/v1/models?kind=video&provider=replicate")
    all_of_them = front.get("/v1/models")

    assert videos.status == all_of_them.status == 200
    assert videos.headers["cache-control"] == "no-store"
    named = {model["name"]: model for model in videos.fields["models"]}
    assert named["standin/image-to-video"]["accepts"] == ["image"]
    assert named["standin/text-to-video"]["accepts"] == []
    assert {model["kind"] for model in videos.fields["models"]} == {"video"}
    assert {model["provider"] for model in all_of_them.fields["models"]} >= {"replicate", "fal", "openai"}
    assert all_of_them.fields["unavailable"] == []


def test_a_schema_is_returned_and_a_missing_one_is_404(front: wp.Front) -> None:
    """It is the provider's own, with all references resolved."""
    shown = front.get("/v1/models/standin/pictures/schema")
    unknown = front.get("/v1/models/standin/nothing/schema")
    without = front.get("/v1/models/dall-e-3/schema?provider=openai")
    elsewhere = front.get("/v1/models/standin/pictures/schema?provider=nobody")

    assert shown.status == 200
    assert shown.fields["schema"]["required"] == ["prompt"]
    assert "$ref" not in json.dumps(shown.fields["schema"])
    assert (unknown.status, without.status, elsewhere.status) == (404, 404, 422)


def test_an_owner_token_reads_schemas_of_listed_models_only(front: wp.Front) -> None:
    """It read those of any model that the operator's account can see, private ones too."""
    made = front.ask("POST", "/v1/owner-tokens", b'{"owner": "ada"}', {**wp.BEARER, "content-type": "application/json"})
    bearer = {"authorization": f"Bearer {made.fields['token']}"}

    def read(name: str) -> list[int]:
        path = f"/v1/models/{name}/schema"
        return [front.ask("GET", path, headers=headers).status for headers in (wp.BEARER, bearer)]

    assert read("standin/slow") == [200, 404]
    assert read("standin/pictures") == [200, 200]


def test_the_list_merges_all_providers_that_take_submissions(front: wp.Front) -> None:
    """Built-in and declared, each model with its kind and inputs; one that only receives has none."""
    listed = front.get("/v1/models").fields["models"]
    facts = {(one["provider"], one["name"]): (one["kind"], one["accepts"], one["picture_field"]) for one in listed}

    assert {provider for provider, _ in facts} == {"replicate", "fal", "openai", "bfl"}
    assert facts["openai", "gpt-image-1"] == ("image", ["image"], "image")
    assert facts["bfl", "flux-2-pro"] == ("image", [], None)
    assert facts["replicate", "standin/image-to-video"] == ("video", ["image"], "image")
    assert facts["fal", "fal-ai/flux/dev/image-to-image"] == ("image", ["image"], "image_url")
    assert len(facts) == len(listed)


@pytest.mark.parametrize(("name", "provider"), [("fal-ai/flux/dev", "fal"), ("gpt-image-1", "openai")])
def test_a_schema_is_returned_of_models_with_any_number_of_segments(front: wp.Front, name: str, provider: str) -> None:
    """fal's have three and more, OpenAI's one; the input of a job is checked with it."""
    shown = front.get(f"/v1/models/{name}/schema?provider={provider}")
    refused = order(front, {"prompt": 7}, chain=[{"provider": provider, "model": name}])
    accepted = order(front, {"prompt": "x", "more": 1}, chain=[{"provider": provider, "model": name}])

    assert (shown.status, shown.fields["model"]) == (200, name)
    assert shown.fields["schema"]["required"] == ["prompt"]
    assert (refused.status, refused.fields["errors"][0]["field"]) == (422, "chain[0].input.prompt")
    assert (accepted.status, accepted.fields["checked"]) == (202, True)


def test_a_valid_input_is_reported_as_checked(front: wp.Front) -> None:
    """The response states it."""
    made = order(front, {"prompt": "a harbour", "num_outputs": 2})

    assert made.status == 202
    assert (made.fields["checked"], made.fields["unchecked"]) == (True, [])


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"num_outputs": 2}, "prompt", "is required"),
        ({"prompt": 7}, "prompt", "is not text"),
        ({"prompt": "p", "num_outputs": 1000}, "num_outputs", "is more than"),
        ({"prompt": "p", "output_format": "bmp"}, "output_format", "is not one of"),
    ],
)
def test_an_invalid_input_is_named_and_nothing_is_stored(
    front: wp.Front, url: str, given: dict[str, Any], field: str, says: str
) -> None:
    """The provider would reject it a moment later, and the entry would be lost."""
    before = rp.rows(url, "SELECT count(*) AS n FROM jobs")

    refused = order(front, given)

    (error,) = refused.fields["errors"]
    assert refused.status == 422
    assert error["field"] == f"chain[0].input.{field}"
    assert says in error["message"]
    assert rp.rows(url, "SELECT count(*) AS n FROM jobs") == before


def test_an_unknown_model_is_rejected(front: wp.Front) -> None:
    """A misspelled name is the most common mistake."""
    refused = order(front, {"prompt": "p"}, model="standin/pictrues")

    assert refused.status == 422
    assert refused.fields["errors"][0]["field"] == "chain[0].model"


def test_an_input_without_a_schema_is_accepted_unchecked(front: wp.Front) -> None:
    """The response states it."""
    chain = [{"provider": "replicate", "model": "standin/pictures"}, {"provider": "openai", "model": "dall-e-3"}]

    made = order(front, {"prompt": "p"}, chain=chain)

    assert made.status == 202
    assert made.fields["checked"] is False
    assert [line.split(":")[0] for line in made.fields["unchecked"]] == ["chain[1]"]


@pytest.fixture
def upload_id(url: str) -> Iterator[str]:
    media = Media("image", "png", "image/png", "png", 8, 8)
    upload = uploads.Upload(ids.uuid7(), "ada", f"ada/inputs/{ids.uuid7()}.png", media, 9, "5e" * 32)
    conn = connect(url)
    uploads.add(conn, upload)
    yield str(upload.id)
    conn.close()


def test_a_model_is_chosen_by_what_it_accepts(front: wp.Front, url: str, upload_id: str) -> None:
    """An image needs a model that accepts one; text alone, one that does not require one."""
    moving = order(front, {"prompt": "p", "image": {"upload": upload_id}}, model="auto", kind="video")
    words = order(front, {"prompt": "p"}, model="auto", kind="video")

    chosen = [
        rp.rows(url, f"SELECT model FROM predictions WHERE job_id = '{made.fields['job_id']}'")[0]["model"]
        for made in (moving, words)
    ]
    assert chosen == ["standin/image-to-video", "standin/text-to-video"]
    assert moving.fields["checked"] is True  # the reference counts as the address it will be


def test_text_alone_finds_a_model_whose_image_is_optional(front: wp.Front, url: str) -> None:
    """Where every model of a kind accepts an image, text alone still finds one."""
    made = order(front, {"prompt": "p"}, model="auto")

    (row,) = rp.rows(url, f"SELECT model FROM predictions WHERE job_id = '{made.fields['job_id']}'")
    assert row["model"] == "standin/pictures"


def at_once(*asks: Callable[[], wp.Answer]) -> list[tuple[wp.Answer, float]]:
    """Run several requests concurrently; return each response with its duration in seconds."""

    def timed(ask: Callable[[], wp.Answer]) -> tuple[wp.Answer, float]:
        started = time.monotonic()
        return ask(), time.monotonic() - started

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(timed, asks))


def test_a_hanging_provider_costs_less_than_the_request_timeout(url: str, standin: Standin) -> None:
    """The outage is the provider's: the request is accepted unchecked, and the list reports the provider."""
    proxy = Proxy(standin.port).start()
    proxy.stall()
    settings = {
        "REPLICATE_API_TOKEN": standin.token,
        "REPLICATE_API_URL": f"http://127.0.0.1:{proxy.port}",
        "MOORAGE_EGRESS_ALLOW": f"127.0.0.1:{proxy.port}",
    }
    try:
        with wp.running(url, **settings) as front:
            (made, took), (listed, _), (schema, _), (chosen, _) = at_once(
                lambda: order(front, {"anything": 1}),
                lambda: front.get("/v1/models?provider=replicate"),
                lambda: front.get("/v1/models/standin/pictures/schema"),
                lambda: order(front, {"prompt": "p"}, model="auto"),
            )
            proxy.resume()  # what still hangs there would hold up the end of the front
    finally:
        proxy.stop()

    assert made.status == 202
    assert made.fields["checked"] is False
    assert took < 10  # the status alone tells that it was less than the five seconds of an answer
    assert listed.fields == {"models": [], "unavailable": [listed.fields["unavailable"][0]]}
    assert listed.fields["unavailable"][0]["provider"] == "replicate"
    assert schema.status == chosen.status == 503
    assert schema.headers["retry-after"] == "1"


def test_requests_time_out_while_postgresql_hangs(tmp_path: Path) -> None:
    """An open connection without responses must not block a client for longer than five seconds."""
    with rp.server(tmp_path) as postgres:
        proxy = Proxy(postgres.port).start()
        url = postgres.url("moorage").replace(f":{postgres.port}/", f":{proxy.port}/")
        try:
            with wp.running(url, REPLICATE_API_TOKEN="r8_x", REPLICATE_API_URL="https://127.0.0.1:9") as front:
                job_id = order(front, {"prompt": "p"}).fields["job_id"]
                proxy.stall()
                answers = at_once(
                    lambda: order(front, {"prompt": "p"}),
                    lambda: front.get("/v1/jobs"),
                    lambda: front.get(f"/v1/jobs/{job_id}"),
                )
                proxy.resume()
        finally:
            proxy.stop()

    for answer, took in answers:
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert took < 15


@pytest.fixture
def made(front: wp.Front) -> wp.Answer:
    return order(front, {"prompt": "p"}, variants=2)


def test_a_job_shows_its_chain_and_the_present_entry(front: wp.Front, made: wp.Answer) -> None:
    """It shows what was attempted; inputs, which may be large, are omitted."""
    shown = front.get(made.headers["location"])

    assert shown.status == 200
    assert shown.fields["chain"] == [{"provider": "replicate", "model": "standin/pictures", "seconds": 60}]
    assert (shown.fields["variants_asked"], shown.fields["placeholder"]) == (2, False)
    (prediction,) = shown.fields["predictions"]
    assert (prediction["entry"], prediction["state"], prediction["submitted_at"]) == (0, "planned", None)


def post(front: wp.Front, path: str) -> wp.Answer:
    return front.ask("POST", path, b"", wp.BEARER)


def test_a_job_is_cancelled_once_and_retried_only_after_a_failure(front: wp.Front, made: wp.Answer) -> None:
    """A repeated request gets the same response; a refused one gets the reason."""
    job = made.headers["location"]

    too_early = post(front, f"{job}/retry")
    first, second = post(front, f"{job}/cancel"), post(front, f"{job}/cancel")
    too_late = post(front, f"{job}/retry")

    assert (first.status, first.fields["state"], first.fields["was"]) == (200, "cancelled", "open")
    assert (second.status, second.fields["was"]) == (200, "cancelled")
    assert (too_early.status, too_late.status) == (409, 409)
    assert "cancelled" in too_late.fields["detail"]
    assert front.get(job).fields["state"] == "cancelled"


def test_a_failed_job_starts_its_chain_again(front: wp.Front, url: str, made: wp.Answer) -> None:
    """An operator who has paid the provider's bill presses one button."""
    conn = connect(url)
    conn.execute(
        "UPDATE predictions SET state = 'failed', run_at = NULL, ended_at = moment() WHERE job_id = %(id)s",
        {"id": made.fields["job_id"]},
    )
    conn.execute(
        "UPDATE jobs SET state = 'failed', category = 'BILLING_FAILED', run_at = NULL, settled_at = moment()"
        " WHERE id = %(id)s",
        {"id": made.fields["job_id"]},
    )
    conn.close()

    again = post(front, f"{made.headers['location']}/retry")

    assert (again.status, again.fields["state"], again.fields["was"]) == (202, "open", "failed")
    predictions = front.get(made.headers["location"]).fields["predictions"]
    assert [(row["entry"], row["state"]) for row in predictions] == [(0, "failed"), (0, "planned")]


@pytest.mark.parametrize("what", ["cancel", "retry"])
def test_an_action_on_an_unknown_job_is_404(front: wp.Front, what: str) -> None:
    """An unknown id has the same response for every action."""
    for job_id in ("01890000-0000-7000-8000-000000000000", "7"):
        assert post(front, f"/v1/jobs/{job_id}/{what}").status == 404
