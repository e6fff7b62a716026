"""The stand-in's fal, judged by the product's own verifier, parser and client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from moorage.errors import BadSignature, ProviderRefused
from moorage.provider_types import PredictionReport
from providers.fal import Fal
from simulation.provider.client import Standin
from tests.integration.standin_clients import clients, order
from tests.integration.standin_receiver import Delivery, Receiver, receiving, wait_for


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def fal(standin: Standin) -> Fal:
    provider = clients(standin)["fal"]
    assert isinstance(provider, Fal)
    provider.fetch_keys()
    return provider


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def verify(fal: Fal, delivery: Delivery, body: bytes | None = None) -> None:
    """Raise what the product raises for a delivery that came just now."""
    headers = [(name.encode(), value.encode()) for name, value in delivery.headers.items()]
    at = float(delivery.headers["x-fal-webhook-timestamp"])
    fal.verify(headers, delivery.body if body is None else body, at)


def told(fal: Fal, receiver: Receiver) -> PredictionReport:
    """Return what the one webhook says."""
    return fal.parse_report(wait_for(lambda: receiver.got)[0].body)


def polled(fal: Fal, external_id: str, model: str = "standin/pictures") -> PredictionReport:
    """Return what polling says at the end."""
    return wait_for(lambda: (r := fal.poll(external_id, model)).status not in ("queued", "running") and r)


def test_its_webhooks_pass_the_products_verifier(standin: Standin, fal: Fal, receiver: Receiver) -> None:
    """Two implementations by two hands: the digest, the order of the parts, the keys in the set."""
    taken = fal.submit(order("fal", receiver.url("/hook?key=abc"), num_images=2, standin={"duration_s": 0}))

    delivery = wait_for(lambda: receiver.got)[0]

    verify(fal, delivery)
    with pytest.raises(BadSignature):
        verify(fal, delivery, delivery.body + b" ")
    report = fal.parse_report(delivery.body)
    assert (report.external_id, report.status, delivery.path) == (taken.external_id, "succeeded", "/hook?key=abc")
    assert [found.path for found in report.outputs] == ["payload.images[0].url", "payload.images[1].url"]
    assert [found.problem for found in report.outputs] == [None, None]


def test_webhook_and_poll_name_the_same_files_as_the_ledger(standin: Standin, fal: Fal, receiver: Receiver) -> None:
    """An output is inserted once, by whichever comes first; so both must say the same path."""
    taken = fal.submit(order("fal", receiver.url(), standin={"duration_s": 0, "outputs": 3}))

    by_webhook, by_poll = told(fal, receiver), polled(fal, taken.external_id)

    expected = [
        line for line in standin.ledger()["summary"]["expected"]["kept"] if line["prediction"] == taken.external_id
    ]
    assert [found.path for found in by_webhook.outputs] == [line["path"] for line in expected]
    assert [found.url for found in by_poll.outputs] == [line["url"] for line in expected]
    assert all(requests.get(line["url"], timeout=60).status_code == 200 for line in expected)


@pytest.mark.parametrize(
    ("model", "script", "paths"),
    [
        ("standin/pictures", {"shape": "string"}, ["payload.image.url"]),
        ("standin/pictures", {"shape": "data", "outputs": 2}, ["payload.images[0].url", "payload.images[1].url"]),
        ("standin/text-to-video", {}, ["payload.video.url"]),
        ("anybody/anything", {"shape": "text"}, []),
    ],
)
def test_a_payload_takes_fals_shapes(
    fal: Fal, receiver: Receiver, model: str, script: dict[str, Any], paths: list[str]
) -> None:
    """fal's applications name their files as they like."""
    fal.submit(order("fal", receiver.url(), model=model, standin={"duration_s": 0, **script}))

    assert [found.path for found in told(fal, receiver).outputs] == paths


@pytest.mark.parametrize("status", ["failed", "aborted"])
def test_a_failure_is_told_by_webhook_and_by_poll(fal: Fal, receiver: Receiver, status: str) -> None:
    """In the queue a failure is COMPLETED too; its result is an HTTP error."""
    taken = fal.submit(order("fal", receiver.url(), standin={"duration_s": 0, "status": status}))

    by_webhook, by_poll = told(fal, receiver), polled(fal, taken.external_id)

    assert (by_webhook.status, by_poll.status) == ("failed", "failed")
    assert by_webhook.error
    assert by_poll.error


def test_a_live_request_is_queued_then_running_and_can_be_cancelled(standin: Standin, fal: Fal) -> None:
    """Status is asked under owner/app only, as fal wants it, though the order named a path below."""
    taken = fal.submit(order("fal", standin={"duration_s": 1, "status": "processing"}))

    first = fal.poll(taken.external_id, "standin/pictures/fast").status
    wait_for(lambda: fal.poll(taken.external_id, "standin/pictures/fast").status == "running")
    fal.cancel(taken.external_id, "standin/pictures/fast")
    fal.cancel(taken.external_id, "standin/pictures/fast")

    assert first in ("queued", "running")
    assert polled(fal, taken.external_id).status == "failed"
    with pytest.raises(ProviderRefused):
        fal.poll(taken.external_id, "someone/else")


def test_the_queues_wire_is_fals_own(standin: Standin) -> None:
    """Codes and fields of the documented queue: 202 while it runs, addresses without the sub-path, 400 too early."""
    key = {"Authorization": f"Key {standin.environment()['FAL_KEY']}"}
    made = requests.post(
        f"{standin.url}/fal/fal-ai/flux/dev", json={"standin": {"duration_s": 600}}, headers=key, timeout=60
    )
    about = made.json()

    status, result = (requests.get(about[name], headers=key, timeout=60) for name in ("status_url", "response_url"))
    cancelled, again = (requests.put(about["cancel_url"], headers=key, timeout=60) for _ in range(2))

    assert about["status_url"] == f"{standin.url}/fal/fal-ai/flux/requests/{about['request_id']}/status"
    assert (made.status_code, about["status"], status.status_code) == (200, "IN_QUEUE", 202)
    assert (result.status_code, result.json()) == (400, {"detail": "Request is still in progress"})
    assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert requests.get(about["status_url"], timeout=60).status_code == 401
    assert requests.get(about["status_url"].replace("flux/", "flux/dev/"), headers=key, timeout=60).status_code == 405


def test_a_webhook_is_tried_again_until_it_is_taken(standin: Standin, fal: Fal, receiver: Receiver) -> None:
    """Every attempt is signed anew, over the same body."""
    receiver.answers = [500, 503]
    fal.submit(order("fal", receiver.url(), standin={"duration_s": 0, "webhook_life_s": 20}))

    wait_for(lambda: len(receiver.got) == 3)

    assert len({delivery.body for delivery in receiver.got}) == 1
    for delivery in receiver.got:
        verify(fal, delivery)


def test_a_wrong_signature_is_refused_by_the_product(fal: Fal, receiver: Receiver) -> None:
    """The forged one must look right in all but the signature."""
    fal.submit(order("fal", receiver.url(), standin={"duration_s": 0, "webhook": "bad_signature_only"}))

    delivery = wait_for(lambda: receiver.got)[0]

    with pytest.raises(BadSignature):
        verify(fal, delivery)
    assert json.loads(delivery.body)["status"] == "OK"
