"""The stand-in's fal, checked with the product's own verifier, parser and client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from moorage.errors import BadSignature, ProviderRefused
from moorage.provider_types import PredictionReport
from providers.fal import Fal
from tests.integration.standin_clients import build_clients, build_submit_request
from tests.integration.standin_receiver import Delivery, Receiver, run_receiver, wait_for
from tests.support.standin import Standin


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def fal(standin: Standin) -> Fal:
    provider = build_clients(standin)["fal"]
    assert isinstance(provider, Fal)
    provider.fetch_keys()
    return provider


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


def verify(fal: Fal, delivery: Delivery, body: bytes | None = None) -> None:
    """Verify a delivery as the product does at its time."""
    headers = [(name.encode(), value.encode()) for name, value in delivery.headers.items()]
    now = float(delivery.headers["x-fal-webhook-timestamp"])
    fal.verify(headers, delivery.body if body is None else body, now)


def report_by_webhook(fal: Fal, receiver: Receiver) -> PredictionReport:
    return fal.parse_report(wait_for(lambda: receiver.deliveries)[0].body)


def report_by_poll(fal: Fal, external_id: str, model: str = "standin/pictures") -> PredictionReport:
    """Return the report of a poll at the end."""
    return wait_for(lambda: (r := fal.poll(external_id, model)).status not in ("queued", "running") and r)


def test_its_webhooks_pass_the_products_verifier(standin: Standin, fal: Fal, receiver: Receiver) -> None:
    """Two independent implementations: the digest, the order of the parts, the keys in the set."""
    submitted = fal.submit(
        build_submit_request("fal", receiver.url("/hook?key=abc"), num_images=2, standin={"duration_s": 0})
    )

    delivery = wait_for(lambda: receiver.deliveries)[0]

    verify(fal, delivery)
    with pytest.raises(BadSignature):
        verify(fal, delivery, delivery.body + b" ")
    report = fal.parse_report(delivery.body)
    assert (report.external_id, report.status, delivery.path) == (submitted.external_id, "succeeded", "/hook?key=abc")
    assert [output.path for output in report.outputs] == ["payload.images[0].url", "payload.images[1].url"]
    assert [output.problem for output in report.outputs] == [None, None]


def test_webhook_and_poll_report_the_same_files_as_the_ledger(standin: Standin, fal: Fal, receiver: Receiver) -> None:
    """An output is inserted once, by webhook or poll; so both must report the same path."""
    submitted = fal.submit(build_submit_request("fal", receiver.url(), standin={"duration_s": 0, "outputs": 3}))

    by_webhook, by_poll = report_by_webhook(fal, receiver), report_by_poll(fal, submitted.external_id)

    expected = [
        line
        for line in standin.get_ledger()["summary"]["expected"]["kept"]
        if line["prediction"] == submitted.external_id
    ]
    assert [output.path for output in by_webhook.outputs] == [line["path"] for line in expected]
    assert [output.url for output in by_poll.outputs] == [line["url"] for line in expected]
    assert all(requests.get(line["url"], timeout=60).status_code == 200 for line in expected)


@pytest.mark.parametrize(
    ("model", "script", "paths"),
    [
        ("standin/pictures", {"shape": "string"}, ["payload.image.url"]),
        ("standin/pictures", {"shape": "data", "outputs": 2}, ["payload.images[0].url", "payload.images[1].url"]),
        ("standin/text-to-video", {}, ["payload.video.url"]),
        ("acme/pier", {"shape": "text"}, []),
    ],
)
def test_a_payload_has_fals_shapes(
    fal: Fal, receiver: Receiver, model: str, script: dict[str, Any], paths: list[str]
) -> None:
    """fal's applications choose the names of their files."""
    fal.submit(build_submit_request("fal", receiver.url(), model=model, standin={"duration_s": 0, **script}))

    assert [output.path for output in report_by_webhook(fal, receiver).outputs] == paths


@pytest.mark.parametrize("status", ["failed", "aborted"])
def test_a_failure_is_reported_by_webhook_and_by_poll(fal: Fal, receiver: Receiver, status: str) -> None:
    """In the queue a failure is COMPLETED too; its result is an HTTP error."""
    submitted = fal.submit(build_submit_request("fal", receiver.url(), standin={"duration_s": 0, "status": status}))

    by_webhook, by_poll = report_by_webhook(fal, receiver), report_by_poll(fal, submitted.external_id)

    assert (by_webhook.status, by_poll.status) == ("failed", "failed")
    assert by_webhook.error
    assert by_poll.error


def test_a_request_is_queued_then_running_and_can_be_cancelled(standin: Standin, fal: Fal) -> None:
    """The status URL has owner/app only, as fal requires, also where the submission has a sub-path."""
    submitted = fal.submit(build_submit_request("fal", standin={"duration_s": 1, "status": "processing"}))

    first = fal.poll(submitted.external_id, "standin/pictures/fast").status
    wait_for(lambda: fal.poll(submitted.external_id, "standin/pictures/fast").status == "running")
    fal.cancel(submitted.external_id, "standin/pictures/fast")
    fal.cancel(submitted.external_id, "standin/pictures/fast")

    assert first in ("queued", "running")
    assert report_by_poll(fal, submitted.external_id).status == "failed"
    with pytest.raises(ProviderRefused):
        fal.poll(submitted.external_id, "another/app")


def test_the_queue_has_fals_wire_format(standin: Standin) -> None:
    """Codes and fields as documented: 202 while it is running, URLs without the sub-path, 400 before the end."""
    key = {"Authorization": f"Key {standin.environment()['FAL_KEY']}"}
    created = requests.post(
        f"{standin.url}/fal/fal-ai/flux/dev", json={"standin": {"duration_s": 600}}, headers=key, timeout=60
    )
    urls = created.json()

    status, result = (requests.get(urls[name], headers=key, timeout=60) for name in ("status_url", "response_url"))
    cancelled, again = (requests.put(urls["cancel_url"], headers=key, timeout=60) for _ in range(2))

    assert urls["status_url"] == f"{standin.url}/fal/fal-ai/flux/requests/{urls['request_id']}/status"
    assert (created.status_code, urls["status"], status.status_code) == (200, "IN_QUEUE", 202)
    assert (result.status_code, result.json()) == (400, {"detail": "Request is still in progress"})
    assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert requests.get(urls["status_url"], timeout=60).status_code == 401
    assert requests.get(urls["status_url"].replace("flux/", "flux/dev/"), headers=key, timeout=60).status_code == 405


def test_a_webhook_is_retried_until_it_is_accepted(standin: Standin, fal: Fal, receiver: Receiver) -> None:
    """Every attempt has a new signature over the same body."""
    receiver.statuses = [500, 503]
    fal.submit(build_submit_request("fal", receiver.url(), standin={"duration_s": 0, "webhook_life_s": 20}))

    wait_for(lambda: len(receiver.deliveries) == 3)

    assert len({delivery.body for delivery in receiver.deliveries}) == 1
    for delivery in receiver.deliveries:
        verify(fal, delivery)


def test_a_wrong_signature_is_rejected_by_the_product(fal: Fal, receiver: Receiver) -> None:
    """The forged webhook must be correct except for its signature."""
    fal.submit(build_submit_request("fal", receiver.url(), standin={"duration_s": 0, "webhook": "bad_signature_only"}))

    delivery = wait_for(lambda: receiver.deliveries)[0]

    with pytest.raises(BadSignature):
        verify(fal, delivery)
    assert json.loads(delivery.body)["status"] == "OK"
