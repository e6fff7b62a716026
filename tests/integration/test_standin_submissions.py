"""Submissions to the stand-in by the product's own clients: each fault, and the predictions that were created."""

import hashlib
import http.client
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import requests

from moorage import settings
from moorage.errors import BillingRefused, MoorageError, ProviderRefused, RateLimited, SubmitUncertain
from providers import Provider
from tests.integration.standin_clients import MODELS, build_clients, build_submit_request
from tests.integration.standin_receiver import wait_for
from tests.support.standin import Standin

NAMES = ("replicate", "fal", "openai")
REFUSED = {"busy": RateLimited, "no_credit": BillingRefused, "invalid": ProviderRefused}
UNCERTAIN = {"lost": 1, "500_after": 1, "no_id": 1, "500_before": 0}  # number of predictions created


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def providers(standin: Standin) -> Mapping[str, Provider]:
    return build_clients(standin)


def ended(standin: Standin, prediction_id: str) -> dict[str, Any]:
    """Return a Replicate prediction at its end."""
    return wait_for(lambda: (p := standin.get_prediction(prediction_id))["completed_at"] and p)


def unique_prompt() -> str:
    """Return a prompt that identifies a submission in the ledger."""
    return f"a harbour, {uuid4()}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", REFUSED)
def test_a_refused_submission_creates_nothing(
    standin: Standin, providers: Mapping[str, Provider], name: str, fault: str
) -> None:
    """Each provider has its own error format; the product must map all to the same errors."""
    prompt = unique_prompt()
    script = {"submit": fault, "retry_after_s": 7}

    with pytest.raises(MoorageError) as caught:
        providers[name].submit(build_submit_request(name, prompt=prompt, standin=script))

    assert type(caught.value) is REFUSED[fault]
    assert standin.list_created(prompt=prompt) == []
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after == 7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", UNCERTAIN)
def test_an_uncertain_submission_is_created_or_not_and_the_client_cannot_know(
    standin: Standin, providers: Mapping[str, Provider], name: str, fault: str
) -> None:
    """Only the ledger knows; so only it can prove that nothing was submitted twice."""
    prompt = unique_prompt()

    with pytest.raises(SubmitUncertain):
        providers[name].submit(build_submit_request(name, prompt=prompt, standin={"submit": fault}))

    created = standin.list_created(prompt=prompt)
    assert [line["provider"] for line in created] == [name] * UNCERTAIN[fault]


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_can_end_after_some_submissions(standin: Standin, providers: Mapping[str, Provider], name: str) -> None:
    """A provider that is busy twice and then accepts: the result that retries must have."""
    request = build_submit_request(name, prompt=unique_prompt(), standin={"submit": "busy", "submit_times": 2})

    for _ in range(2):
        with pytest.raises(RateLimited):
            providers[name].submit(request)
    accepted = providers[name].submit(request)

    assert [line["prediction"] for line in standin.list_created(prompt=request.input["prompt"])] == [
        accepted.external_id
    ]


@pytest.mark.parametrize("name", ["replicate", "fal"])
def test_a_prediction_is_recorded_with_the_key_of_its_webhook(
    standin: Standin, providers: Mapping[str, Provider], name: str
) -> None:
    """Only the key connects a submission with its uncertain outcome."""
    key = uuid4().hex
    request = build_submit_request(name, f"http://127.0.0.1:9/webhooks/{name}?a=b&key={key}")

    providers[name].submit(request)
    with suppress(SubmitUncertain):
        providers[name].submit(build_submit_request(name, request.webhook_url, standin={"submit": "lost"}))

    assert len(standin.list_created(key=key, provider=name)) == 2


def test_a_lost_submission_is_found_in_the_list_by_its_webhook(
    standin: Standin, providers: Mapping[str, Provider]
) -> None:
    """Replicate's list prevents a second submission after a lost response."""
    since, webhook = (
        datetime.now(UTC) - timedelta(seconds=5),
        f"http://127.0.0.1:9/webhooks/replicate?key={uuid4().hex}",
    )
    with pytest.raises(SubmitUncertain):
        providers["replicate"].submit(build_submit_request("replicate", webhook, standin={"submit": "lost"}))

    listed = [one for page in providers["replicate"].list_predictions(since) for one in page if one.webhook == webhook]

    assert [one.external_id for one in listed] == [line["prediction"] for line in standin.list_created(webhook=webhook)]
    assert len(listed) == 1


def test_a_webhook_that_is_not_echoed_is_not_stored(standin: Standin, providers: Mapping[str, Provider]) -> None:
    """replicate-javascript #321: the prediction runs and sends no webhook."""
    accepted = providers["replicate"].submit(build_submit_request("replicate", standin={"submit": "not_echoed"}))

    assert ended(standin, accepted.external_id)["webhook"] is None


def test_a_response_can_be_slow(standin: Standin) -> None:
    """The prediction of a client that times out is created all the same."""
    prompt = unique_prompt()
    connection = http.client.HTTPConnection("127.0.0.1", standin.port, timeout=0.2)
    body = f'{{"input": {{"prompt": "{prompt}", "standin": {{"submit_s": 10}}}}}}'

    connection.request(
        "POST", "/v1/models/standin/pictures/predictions", body, {"Authorization": f"Bearer {standin.token}"}
    )
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()

    assert wait_for(lambda: len(standin.list_created(prompt=prompt))) == 1


@pytest.mark.parametrize(
    ("model", "error", "created"),
    [
        ("standin/busy", RateLimited, 0),
        ("standin/no-credit", BillingRefused, 0),
        ("standin/broken", SubmitUncertain, 0),
        ("standin/lost-answers", SubmitUncertain, 1),
    ],
)
def test_models_fail_without_a_script(
    standin: Standin, providers: Mapping[str, Provider], model: str, error: type[MoorageError], created: int
) -> None:
    """A fallback chain can be shown with inputs as an application sends them."""
    prompt = unique_prompt()

    with pytest.raises(error):
        providers["replicate"].submit(build_submit_request("replicate", model=model, prompt=prompt))

    assert len(standin.list_created(prompt=prompt)) == created


def test_a_failing_model_fails_and_a_script_overrides_the_model(
    standin: Standin, providers: Mapping[str, Provider]
) -> None:
    """The slow model must not slow down tests that do not need its 20 s."""
    failing = providers["replicate"].submit(build_submit_request("replicate", model="standin/failing"))
    hurried = providers["replicate"].submit(
        build_submit_request("replicate", model="standin/slow", standin={"duration_s": 0})
    )
    slow = providers["replicate"].submit(build_submit_request("replicate", model="standin/slow"))

    assert ended(standin, failing.external_id)["status"] == "failed"
    assert ended(standin, hurried.external_id)["status"] == "succeeded"
    assert standin.get_prediction(slow.external_id)["completed_at"] is None


def test_a_healthy_model_follows_its_input(standin: Standin, providers: Mapping[str, Provider]) -> None:
    """Without a script, number, size, format and seed follow the input."""
    fields = {"num_outputs": 2, "width": 320, "height": 192, "output_format": "png", "seed": 5}
    one, two = (providers["replicate"].submit(build_submit_request("replicate", **fields)) for _ in range(2))

    first, second = (
        [requests.get(url, timeout=60).content for url in ended(standin, created.external_id)["output"]]
        for created in (one, two)
    )

    assert first == second
    assert len(first) == 2
    assert {(data[:4], int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) for data in first} == {
        (b"\x89PNG", 320, 192)
    }


def test_a_video_model_downloads_its_picture_and_creates_a_video(
    standin: Standin, providers: Mapping[str, Provider]
) -> None:
    """Image to video end to end: the URL in the input must work."""
    picture = ended(standin, providers["replicate"].submit(build_submit_request("replicate")).external_id)["output"][0]

    created = providers["replicate"].submit(
        build_submit_request("replicate", model="standin/image-to-video", image=picture)
    )
    video = requests.get(ended(standin, created.external_id)["output"], timeout=60)

    inputs = [
        one
        for one in standin.get_ledger()["lines"]
        if one["kind"] == "input" and one["prediction"] == created.external_id
    ]
    assert [(one["name"], one["status"]) for one in inputs] == [("image", 200)]
    assert inputs[0]["sha256"] == hashlib.sha256(requests.get(picture, timeout=60).content).hexdigest()
    assert (video.headers["Content-Type"], video.content[4:8]) == ("video/mp4", b"ftyp")


def test_an_input_that_cannot_be_downloaded_fails_the_prediction(
    standin: Standin, providers: Mapping[str, Provider]
) -> None:
    """An expired signed URL is an error of the application, and must be reported as such."""
    gone = f"{standin.url}/out/unknown/0.png"

    created = providers["replicate"].submit(
        build_submit_request("replicate", model="standin/image-to-video", image=gone)
    )

    failed = ended(standin, created.external_id)
    assert (failed["status"], failed["error"]) == ("failed", "input.image could not be fetched: 404")


@pytest.mark.parametrize(
    ("model", "input_", "message"),
    [
        ("standin/pictures", {}, "input: 'prompt' is a required property"),
        ("standin/image-to-video", {"prompt": "x"}, "input: 'image' is a required property"),
        ("standin/pictures", {"prompt": ""}, "input.prompt: '' should be non-empty"),
        (
            "standin/pictures",
            {"prompt": "x", "num_outputs": 11},
            "input.num_outputs: 11 is greater than the maximum of 10",
        ),
        (
            "standin/pictures",
            {"prompt": "x", "width": "1"},
            "input.width: '1' is not of type 'integer'",
        ),
        ("standin/pictures", {"prompt": "x", "output_format": "bmp"}, "input.output_format: 'bmp' is not one of"),
        ("standin/pictures", {"prompt": "x", "image": "a.png"}, "input.image: 'a.png' does not match"),
    ],
)
def test_an_input_that_violates_the_schema_is_rejected_by_field(
    standin: Standin, model: str, input_: dict[str, Any], message: str
) -> None:
    """The product checks inputs beforehand; the provider does, too."""
    response = requests.post(
        f"{standin.url}/v1/models/{model}/predictions",
        json={"input": input_},
        headers={"Authorization": f"Bearer {standin.token}"},
        timeout=60,
    )

    assert response.status_code == 422
    assert message in response.json()["detail"]
    assert response.json()["invalid_fields"][0]["field"].startswith("input")


def test_models_are_described_as_replicate_describes_them(standin: Standin, providers: Mapping[str, Provider]) -> None:
    """Inputs are validated, and video models selected, by these schemas alone."""
    pictures = {one["name"] for one in providers["replicate"].describe_models("image")}
    videos = {one["name"]: one["accepts"] for one in providers["replicate"].describe_models("video")}
    schema = providers["replicate"].get_input_schema("standin/pictures")

    assert {"standin/pictures", "black-forest-labs/flux-schnell", "google/nano-banana"} <= pictures
    assert {name: videos[name] for name in videos if name.startswith("standin/")} == {
        "standin/text-to-video": [], "standin/image-to-video": ["image"]
    }  # fmt: skip
    assert {*settings.REPLICATE_MODELS} <= {*pictures, *videos}  # every default model
    assert videos["kwaivgi/kling-v2.1"] == ["image"]
    assert schema is not None
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["output_format"]["allOf"][0]["enum"] == ["webp", "jpg", "png"]


def test_a_model_is_selected_by_name_version_or_deployment(standin: Standin, providers: Mapping[str, Provider]) -> None:
    """The three ways of submitting to one model are equivalent."""
    bearer = {"Authorization": f"Bearer {standin.token}"}
    described = requests.get(f"{standin.url}/v1/models/standin/failing", headers=bearer, timeout=60).json()
    version = described["latest_version"]["id"]

    by_version = providers["replicate"].submit(build_submit_request("replicate", model=version))
    by_both = providers["replicate"].submit(build_submit_request("replicate", model=f"standin/failing:{version}"))
    deployed = providers["replicate"].submit(build_submit_request("replicate", model="deployments/standin/failing"))

    runs = [ended(standin, created.external_id) for created in (by_version, by_both, deployed)]
    assert [(run["model"], run["status"]) for run in runs] == [("standin/failing", "failed")] * 3
    assert [run["deployment"] for run in runs] == [None, None, "standin/failing"]
    assert providers["replicate"].get_input_schema(f"standin/failing:{version}") is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_outage_is_one_of_all_providers(standin: Standin, providers: Mapping[str, Provider], name: str) -> None:
    """A 503 leaves open whether the submission arrived; here it did not."""
    prompt = unique_prompt()
    standin.begin_outage(60)

    with pytest.raises(SubmitUncertain):
        providers[name].submit(build_submit_request(name, prompt=prompt))

    standin.begin_outage(0)
    assert standin.list_created(prompt=prompt) == []


def test_a_running_prediction_is_cancelled_at_its_provider(standin: Standin, providers: Mapping[str, Provider]) -> None:
    """Cancelling one that has ended is no error."""
    created = providers["replicate"].submit(
        build_submit_request("replicate", standin={"status": "processing", "duration_s": 0})
    )

    providers["replicate"].cancel(created.external_id)
    providers["replicate"].cancel(created.external_id)

    assert providers["replicate"].poll(created.external_id).status == "cancelled"


@pytest.mark.parametrize("name", ["replicate", "fal"])
def test_a_submission_without_a_webhook_is_polled(
    standin: Standin, providers: Mapping[str, Provider], name: str
) -> None:
    """Behind a router nothing can call back: the request names no URL, and the result is read."""
    submitted = providers[name].submit(build_submit_request(name, webhook=None))

    wait_for(lambda: providers[name].poll(submitted.external_id, MODELS[name]).status == "succeeded")
