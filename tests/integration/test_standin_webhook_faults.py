"""Webhooks of the stand-in as they arrive: signed, filtered, retried, and with each fault."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.integration.standin_receiver import Delivery, Receiver, run_receiver, wait_for
from tests.support.standin import Standin


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


def verified(standin: Standin, delivery: Delivery) -> dict[str, Any] | None:
    """Return the body if the reference library accepts it, None if not."""
    try:
        body: dict[str, Any] = Webhook(standin.secret).verify(delivery.body.decode(), delivery.headers)
    except WebhookVerificationError:
        return None
    return body


def statuses(receiver: Receiver) -> list[str]:
    return [json.loads(delivery.body)["status"] for delivery in receiver.deliveries]


def attempts(standin: Standin, prediction: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the ledger's attempts for a prediction, once there are `count`."""

    def read() -> list[dict[str, Any]]:
        lines = standin.get_ledger()["lines"]
        return [line for line in lines if line["kind"] == "webhook" and line["prediction"] == prediction["id"]]

    return wait_for(lambda: len(lines := read()) >= count and lines)


def test_the_body_is_the_prediction_itself_correctly_signed(standin: Standin, receiver: Receiver) -> None:
    """No envelope; verified by the library of Standard Webhooks; the URL's query is preserved."""
    created = standin.create_prediction({"standin": {"duration_s": 0}}, receiver.url("/hook?tenant=7"))

    delivery = wait_for(lambda: receiver.deliveries)[0]

    assert verified(standin, delivery) == standin.get_prediction(created["id"])
    assert delivery.path == "/hook?tenant=7"
    line = attempts(standin, created, 1)[0]
    assert line["webhook_id"] == delivery.headers["webhook-id"]
    assert (line["signed"], line["http_status"], line["status"]) == (True, 200, "succeeded")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (None, ["processing", "succeeded"]),  # new output, and completion
        (["completed"], ["succeeded"]),
        (["start", "output", "logs", "completed"], ["processing", "processing", "processing", "succeeded"]),
    ],
)
def test_events_follow_the_filter(
    standin: Standin, receiver: Receiver, events: list[str] | None, expected: list[str]
) -> None:
    """Events outside the filter are not sent; every message has its own id."""
    created = standin.create_prediction({"standin": {"duration_s": 0.3, "outputs": 2}}, receiver.url(), events)

    lines = attempts(standin, created, len(expected))

    assert sorted(statuses(receiver)) == expected
    assert len({line["webhook_id"] for line in lines}) == len(expected)


def test_a_terminal_webhook_is_retried_until_a_2xx(standin: Standin, receiver: Receiver) -> None:
    """All attempts have one webhook-id, each is signed with its own time, and none follows the 2xx."""
    receiver.statuses = [503, 302, 404]
    created = standin.create_prediction({"standin": {"duration_s": 0}}, receiver.url(), ["completed"])

    lines = attempts(standin, created, 4)

    assert [line["http_status"] for line in lines] == [503, 302, 404, 200]
    assert {delivery.path for delivery in receiver.deliveries} == {"/hook"}  # the redirect was not followed
    assert len({delivery.headers["webhook-id"] for delivery in receiver.deliveries}) == 1
    assert len({delivery.body for delivery in receiver.deliveries}) == 1
    assert all(verified(standin, delivery) for delivery in receiver.deliveries)
    times = [int(delivery.headers["webhook-timestamp"]) for delivery in receiver.deliveries]
    assert times[-1] > times[0]
    assert (
        receiver.deliveries[-1].received_at - receiver.deliveries[0].received_at > 2
    )  # 3.5 s, less a delay of the first
    assert lines[-1]["webhook_id"] in standin.get_ledger()["summary"]["acknowledged"]


def test_attempts_end_with_the_webhooks_life(standin: Standin, receiver: Receiver) -> None:
    """The provider gives up; then only a poll detects the end."""
    receiver.statuses = [500] * 20
    created = standin.create_prediction(
        {"standin": {"duration_s": 0, "webhook_life_s": 1}}, receiver.url(), ["completed"]
    )
    healthy = standin.create_prediction(
        {"standin": {"duration_s": 0, "webhook": "late", "late_s": 2.5}}, receiver.url()
    )

    attempts(standin, healthy, 1)

    lines = attempts(standin, created, 3)
    assert [line["attempt"] for line in lines] == [1, 2, 3]
    assert lines[0]["webhook_id"] in standin.get_ledger()["summary"]["unacknowledged"]


def test_an_unreachable_receiver_is_retried(standin: Standin, receiver: Receiver) -> None:
    """A refused connection counts as no response."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: no other process gets the port
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/hook"
        created = standin.create_prediction({"standin": {"duration_s": 0, "webhook_life_s": 0.5}}, url, ["completed"])

        lines = attempts(standin, created, 2)

    assert [line["http_status"] for line in lines] == [None, None]
    assert all("Connection refused" in line["error"] for line in lines)


def test_progress_is_never_retried(standin: Standin, receiver: Receiver) -> None:
    """Only terminal events are retried."""
    receiver.statuses = [500]
    created = standin.create_prediction({"standin": {"duration_s": 2}}, receiver.url(), ["start", "completed"])

    lines = attempts(standin, created, 2)

    assert [(line["event"], line["http_status"]) for line in lines] == [("start", 500), ("completed", 200)]


def test_a_late_webhook_is_delayed(standin: Standin, receiver: Receiver) -> None:
    """The poll must be able to win the race."""
    created = standin.create_prediction({"standin": {"duration_s": 0, "webhook": "late", "late_s": 3}}, receiver.url())
    wait_for(lambda: standin.get_prediction(created["id"])["completed_at"])
    assert not receiver.deliveries

    attempts(standin, created, 1)

    assert statuses(receiver) == ["succeeded"]


def test_a_double_webhook_is_sent_twice_with_one_id(standin: Standin, receiver: Receiver) -> None:
    """A duplicate is recognised by its webhook-id."""
    created = standin.create_prediction({"standin": {"duration_s": 0, "webhook": "double"}}, receiver.url())

    lines = attempts(standin, created, 2)

    assert len({line["webhook_id"] for line in lines}) == 1
    assert receiver.deliveries[0].body == receiver.deliveries[1].body


def test_a_double_webhook_can_have_two_ids(standin: Standin, receiver: Receiver) -> None:
    """Two webhooks for one completion, which their ids do not show."""
    created = standin.create_prediction({"standin": {"duration_s": 0, "webhook": "double_new_id"}}, receiver.url())

    lines = attempts(standin, created, 2)

    assert len({line["webhook_id"] for line in lines}) == 2
    assert statuses(receiver) == ["succeeded", "succeeded"]


def test_out_of_order_ends_with_processing(standin: Standin, receiver: Receiver) -> None:
    """A status must only advance, whatever arrives last."""
    script = {"duration_s": 0, "webhook": "out_of_order"}
    created = standin.create_prediction({"standin": script}, receiver.url(), ["start", "completed"])

    attempts(standin, created, 2)

    assert statuses(receiver) == ["succeeded", "processing"]
    assert json.loads(receiver.deliveries[1].body)["output"] is None


def test_a_missing_webhook_is_not_sent(standin: Standin, receiver: Receiver) -> None:
    """Without a webhook only the API shows the end."""
    lost = standin.create_prediction({"standin": {"duration_s": 0, "webhook": "missing"}}, receiver.url())
    wait_for(lambda: standin.get_prediction(lost["id"])["completed_at"])
    held = standin.create_prediction({"standin": {"duration_s": 0, "webhook": "late", "late_s": 3}}, receiver.url())
    wait_for(lambda: standin.get_prediction(held["id"])["completed_at"])

    attempts(standin, held, 1)

    assert [json.loads(delivery.body)["id"] for delivery in receiver.deliveries] == [held["id"]]


def test_a_wrong_signature_is_recorded_and_corrected_by_the_retry(standin: Standin, receiver: Receiver) -> None:
    """A receiver must reject the first and accept the second."""
    receiver.statuses = [401]
    created = standin.create_prediction(
        {"standin": {"duration_s": 0, "webhook": "bad_signature_first"}}, receiver.url()
    )

    lines = attempts(standin, created, 2)

    assert [verified(standin, delivery) is not None for delivery in receiver.deliveries] == [False, True]
    assert [(line["signed"], line["http_status"]) for line in lines] == [(False, 401), (True, 200)]
    assert lines[0]["webhook_id"] not in standin.get_ledger()["summary"]["wrongly_signed_accepted"]


def test_a_receiver_that_accepts_a_wrong_signature_is_recorded(standin: Standin, receiver: Receiver) -> None:
    """The ledger must list a receiver that verifies nothing."""
    created = standin.create_prediction({"standin": {"duration_s": 0, "webhook": "bad_signature_only"}}, receiver.url())

    line = attempts(standin, created, 1)[0]

    assert verified(standin, receiver.deliveries[0]) is None
    assert line["webhook_id"] in standin.get_ledger()["summary"]["wrongly_signed_accepted"]
