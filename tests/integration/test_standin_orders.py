"""Orders at the stand-in, given by the product's own providers: how each goes wrong, and what was really made."""

import hashlib
import http.client
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import requests

from moorage.errors import BillingRefused, MoorageError, ProviderBusy, ProviderRefused, SubmitUncertain
from providers import Provider
from simulation.provider.client import Standin
from tests.integration.standin_clients import clients, order
from tests.integration.standin_receiver import wait_for

NAMES = ("replicate", "fal", "openai")
REFUSED = {"busy": ProviderBusy, "no_credit": BillingRefused, "invalid": ProviderRefused}
UNCERTAIN = {"lost": 1, "500_after": 1, "no_id": 1, "500_before": 0}  # how many were made


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def known(standin: Standin) -> Mapping[str, Provider]:
    return clients(standin)


def ended(standin: Standin, prediction_id: str) -> dict[str, Any]:
    """Return a prediction of Replicate's at its end."""
    return wait_for(lambda: (p := standin.get(prediction_id))["completed_at"] and p)


def fresh() -> str:
    """Return a prompt of its own, by which the ledger finds what was made of it."""
    return f"a harbour, {uuid4()}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", REFUSED)
def test_a_refused_order_makes_nothing(standin: Standin, known: Mapping[str, Provider], name: str, fault: str) -> None:
    """Each provider words it in its own way; the product must hear the same thing."""
    prompt = fresh()
    script = {"submit": fault, "retry_after_s": 7}

    with pytest.raises(MoorageError) as caught:
        known[name].submit(order(name, prompt=prompt, standin=script))

    assert type(caught.value) is REFUSED[fault]
    assert standin.made(prompt=prompt) == []
    if isinstance(caught.value, ProviderBusy):
        assert caught.value.retry_after == 7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", UNCERTAIN)
def test_an_uncertain_order_is_made_or_not_and_the_client_cannot_tell(
    standin: Standin, known: Mapping[str, Provider], name: str, fault: str
) -> None:
    """Only the ledger knows; so only it can prove that nothing was ordered twice."""
    prompt = fresh()

    with pytest.raises(SubmitUncertain):
        known[name].submit(order(name, prompt=prompt, standin={"submit": fault}))

    made = standin.made(prompt=prompt)
    assert [line["provider"] for line in made] == [name] * UNCERTAIN[fault]


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_can_end_after_some_orders(standin: Standin, known: Mapping[str, Provider], name: str) -> None:
    """A provider that is busy twice and then takes the order: what waiting must lead to."""
    asked = order(name, prompt=fresh(), standin={"submit": "busy", "submit_times": 2})

    for _ in range(2):
        with pytest.raises(ProviderBusy):
            known[name].submit(asked)
    taken = known[name].submit(asked)

    assert [line["prediction"] for line in standin.made(prompt=asked.input["prompt"])] == [taken.external_id]


@pytest.mark.parametrize("name", ["replicate", "fal"])
def test_what_was_made_is_counted_by_the_key_of_its_webhook(
    standin: Standin, known: Mapping[str, Provider], name: str
) -> None:
    """The key is all that an order and its ambiguous outcome have in common."""
    key = uuid4().hex
    asked = order(name, f"http://127.0.0.1:9/webhooks/{name}?a=b&key={key}")

    known[name].submit(asked)
    with suppress(SubmitUncertain):
        known[name].submit(order(name, asked.webhook_url, standin={"submit": "lost"}))

    assert standin.ledger()["summary"]["made_by_key"][key] == 2
    assert len(standin.made(key=key, provider=name)) == 2


def test_a_lost_order_is_found_in_the_list_by_its_webhook(standin: Standin, known: Mapping[str, Provider]) -> None:
    """Replicate's list is what saves an ambiguous order from being given again."""
    since, hook = datetime.now(UTC) - timedelta(seconds=5), f"http://127.0.0.1:9/webhooks/replicate?key={uuid4().hex}"
    with pytest.raises(SubmitUncertain):
        known["replicate"].submit(order("replicate", hook, standin={"submit": "lost"}))

    listed = [one for page in known["replicate"].list_predictions(since) for one in page if one.webhook == hook]

    assert [one.external_id for one in listed] == [line["prediction"] for line in standin.made(webhook=hook)]
    assert len(listed) == 1


def test_a_webhook_that_is_not_echoed_is_not_kept(standin: Standin, known: Mapping[str, Provider]) -> None:
    """replicate-javascript #321: the prediction runs and tells nobody."""
    taken = known["replicate"].submit(order("replicate", standin={"submit": "not_echoed"}))

    assert ended(standin, taken.external_id)["webhook"] is None


def test_an_answer_can_be_slow(standin: Standin) -> None:
    """A client that gives up has ordered all the same."""
    prompt = fresh()
    connection = http.client.HTTPConnection("127.0.0.1", standin.port, timeout=0.2)
    body = f'{{"input": {{"prompt": "{prompt}", "standin": {{"submit_s": 10}}}}}}'
    begun = time.monotonic()

    connection.request(
        "POST", "/v1/models/standin/pictures/predictions", body, {"Authorization": f"Bearer {standin.token}"}
    )
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()

    assert time.monotonic() - begun < 8
    assert wait_for(lambda: len(standin.made(prompt=prompt))) == 1


@pytest.mark.parametrize(
    ("model", "error", "made"),
    [
        ("standin/busy", ProviderBusy, 0),
        ("standin/no-credit", BillingRefused, 0),
        ("standin/broken", SubmitUncertain, 0),
        ("standin/lost-answers", SubmitUncertain, 1),
    ],
)
def test_models_go_wrong_without_a_script(
    standin: Standin, known: Mapping[str, Provider], model: str, error: type[MoorageError], made: int
) -> None:
    """A chain can be shown falling back with inputs as an application sends them."""
    prompt = fresh()

    with pytest.raises(error):
        known["replicate"].submit(order("replicate", model=model, prompt=prompt))

    assert len(standin.made(prompt=prompt)) == made


def test_a_failing_model_fails_and_a_script_overrules_the_model(
    standin: Standin, known: Mapping[str, Provider]
) -> None:
    """The slow model must not make tests slow that do not need its 20 s."""
    failing = known["replicate"].submit(order("replicate", model="standin/failing"))
    hurried = known["replicate"].submit(order("replicate", model="standin/slow", standin={"duration_s": 0}))
    slow = known["replicate"].submit(order("replicate", model="standin/slow"))

    assert ended(standin, failing.external_id)["status"] == "failed"
    assert ended(standin, hurried.external_id)["status"] == "succeeded"
    assert standin.get(slow.external_id)["completed_at"] is None


def test_a_healthy_model_follows_its_input(standin: Standin, known: Mapping[str, Provider]) -> None:
    """Without a script it is a model like any other: count, size, format and seed are what was asked for."""
    asked = {"num_outputs": 2, "width": 320, "height": 192, "output_format": "png", "seed": 5}
    one, two = (known["replicate"].submit(order("replicate", **asked)) for _ in range(2))

    first, second = (
        [requests.get(url, timeout=60).content for url in ended(standin, made.external_id)["output"]]
        for made in (one, two)
    )

    assert first == second
    assert len(first) == 2
    assert {(data[:4], int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) for data in first} == {
        (b"\x89PNG", 320, 192)
    }


def test_a_video_model_fetches_its_picture_and_makes_a_video(standin: Standin, known: Mapping[str, Provider]) -> None:
    """Image to video end to end: the address that the input names must really open."""
    picture = ended(standin, known["replicate"].submit(order("replicate")).external_id)["output"][0]

    made = known["replicate"].submit(order("replicate", model="standin/image-to-video", image=picture))
    video = requests.get(ended(standin, made.external_id)["output"], timeout=60)

    fetched = [
        one for one in standin.ledger()["lines"] if one["kind"] == "input" and one["prediction"] == made.external_id
    ]
    assert [(one["name"], one["status"]) for one in fetched] == [("image", 200)]
    assert fetched[0]["sha256"] == hashlib.sha256(requests.get(picture, timeout=60).content).hexdigest()
    assert (video.headers["Content-Type"], video.content[4:8]) == ("video/mp4", b"ftyp")


def test_an_input_that_cannot_be_fetched_fails_the_run(standin: Standin, known: Mapping[str, Provider]) -> None:
    """A signed address that has expired is the application's loss, and must be seen as such."""
    gone = f"{standin.url}/out/nobody/0.png"

    made = known["replicate"].submit(order("replicate", model="standin/image-to-video", image=gone))

    told = ended(standin, made.external_id)
    assert (told["status"], told["error"]) == ("failed", "input.image could not be fetched: 404")


@pytest.mark.parametrize(
    ("model", "asked", "told"),
    [
        ("standin/pictures", {}, "input: prompt is required"),
        ("standin/image-to-video", {"prompt": "x"}, "input: image is required"),
        ("standin/pictures", {"prompt": ""}, "input.prompt: String length must be from 1"),
        ("standin/pictures", {"prompt": "x", "num_outputs": 11}, "input.num_outputs: Must be less than or equal to 10"),
        (
            "standin/pictures",
            {"prompt": "x", "width": "1"},
            "input.width: Invalid type. Expected: integer",
        ),
        ("standin/pictures", {"prompt": "x", "output_format": "bmp"}, "input.output_format: must be one of"),
        ("standin/pictures", {"prompt": "x", "image": "a.png"}, "input.image: Does not match format 'uri'"),
    ],
)
def test_an_input_outside_the_schema_is_refused_by_field(
    standin: Standin, model: str, asked: dict[str, Any], told: str
) -> None:
    """What the product checks beforehand, the provider checks too."""
    answer = requests.post(
        f"{standin.url}/v1/models/{model}/predictions",
        json={"input": asked},
        headers={"Authorization": f"Bearer {standin.token}"},
        timeout=60,
    )

    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert answer.json()["invalid_fields"][0]["field"].startswith("input")


def test_models_are_described_as_replicate_describes_them(standin: Standin, known: Mapping[str, Provider]) -> None:
    """A chain's input is checked, and a video model chosen, by these schemas alone."""
    pictures = {one["name"] for one in known["replicate"].list_models("image")}
    videos = {one["name"]: one["accepts"] for one in known["replicate"].list_models("video")}
    schema = known["replicate"].get_input_schema("standin/pictures")

    assert pictures == {"standin/pictures"}
    assert videos == {"standin/text-to-video": [], "standin/image-to-video": ["image"]}
    assert schema is not None
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["output_format"]["allOf"][0]["enum"] == ["webp", "jpg", "png"]


def test_a_version_names_its_model_too(standin: Standin, known: Mapping[str, Provider]) -> None:
    """The three ways of ordering one model lead to the same place."""
    bearer = {"Authorization": f"Bearer {standin.token}"}
    shown = requests.get(f"{standin.url}/v1/models/standin/failing", headers=bearer, timeout=60).json()
    version = shown["latest_version"]["id"]

    by_version = known["replicate"].submit(order("replicate", model=version))
    by_both = known["replicate"].submit(order("replicate", model=f"standin/failing:{version}"))
    deployed = known["replicate"].submit(order("replicate", model="deployments/standin/failing"))

    runs = [ended(standin, made.external_id) for made in (by_version, by_both, deployed)]
    assert [(run["model"], run["status"]) for run in runs] == [("standin/failing", "failed")] * 3
    assert [run["deployment"] for run in runs] == [None, None, "standin/failing"]
    assert known["replicate"].get_input_schema(f"standin/failing:{version}") is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_outage_is_one_of_all_providers(standin: Standin, known: Mapping[str, Provider], name: str) -> None:
    """503 says nothing of whether the order arrived; here it did not."""
    prompt = fresh()
    standin.outage(60)

    with pytest.raises(SubmitUncertain):
        known[name].submit(order(name, prompt=prompt))

    standin.outage(0)
    assert standin.made(prompt=prompt) == []


def test_a_running_prediction_is_cancelled_by_its_provider(standin: Standin, known: Mapping[str, Provider]) -> None:
    """And one that has ended is no error."""
    made = known["replicate"].submit(order("replicate", standin={"status": "processing", "duration_s": 0}))

    known["replicate"].cancel(made.external_id)
    known["replicate"].cancel(made.external_id)

    assert known["replicate"].poll(made.external_id).status == "cancelled"
