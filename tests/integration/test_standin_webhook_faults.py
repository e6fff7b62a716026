"""Webhooks of the stand-in as they arrive: signed, filtered, tried again, and each way of going wrong."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from simulation.provider.client import Standin
from tests.integration.standin_receiver import Delivery, Receiver, receiving, wait_for


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def verified(standin: Standin, delivery: Delivery) -> dict[str, Any] | None:
    """Return the body that the reference library accepts, None when it refuses."""
    try:
        body: dict[str, Any] = Webhook(standin.secret).verify(delivery.body.decode(), delivery.headers)
    except WebhookVerificationError:
        return None
    return body


def statuses(receiver: Receiver) -> list[str]:
    return [json.loads(delivery.body)["status"] for delivery in receiver.got]


def attempts(standin: Standin, prediction: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the ledger's attempts for a prediction, once there are `count`."""

    def look() -> list[dict[str, Any]]:
        lines = standin.ledger()["lines"]
        return [line for line in lines if line["kind"] == "webhook" and line["prediction"] == prediction["id"]]

    return wait_for(lambda: len(lines := look()) >= count and lines)


def test_the_body_is_the_prediction_itself_and_rightly_signed(standin: Standin, receiver: Receiver) -> None:
    """No envelope; judged by Standard Webhooks' own library; the URL's query survives."""
    made = standin.create({"standin": {"duration_s": 0}}, receiver.url("/hook?tenant=7"))

    delivery = wait_for(lambda: receiver.got)[0]

    assert verified(standin, delivery) == standin.get(made["id"])
    assert delivery.path == "/hook?tenant=7"
    line = attempts(standin, made, 1)[0]
    assert line["webhook_id"] == delivery.headers["webhook-id"]
    assert (line["signed"], line["answer"], line["status"]) == (True, 200, "succeeded")


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
    """What is not asked for is not sent; every message has an id of its own."""
    made = standin.create({"standin": {"duration_s": 0.3, "outputs": 2}}, receiver.url(), events)

    lines = attempts(standin, made, len(expected))

    assert sorted(statuses(receiver)) == expected
    assert len({line["webhook_id"] for line in lines}) == len(expected)


def test_a_terminal_webhook_is_tried_again_until_a_2xx(standin: Standin, receiver: Receiver) -> None:
    """One webhook-id over all attempts, each signed with its own time, and none after the 2xx."""
    receiver.answers = [503, 302, 404]
    made = standin.create({"standin": {"duration_s": 0}}, receiver.url(), ["completed"])

    lines = attempts(standin, made, 4)

    assert [line["answer"] for line in lines] == [503, 302, 404, 200]
    assert {delivery.path for delivery in receiver.got} == {"/hook"}  # the redirect was not followed
    assert len({delivery.headers["webhook-id"] for delivery in receiver.got}) == 1
    assert len({delivery.body for delivery in receiver.got}) == 1
    assert all(verified(standin, delivery) for delivery in receiver.got)
    times = [int(delivery.headers["webhook-timestamp"]) for delivery in receiver.got]
    assert times[-1] > times[0]
    assert receiver.got[-1].at - receiver.got[0].at > 2  # 3.5 s, where the first was not slow to arrive
    assert lines[-1]["webhook_id"] in standin.ledger()["summary"]["acknowledged"]


def test_attempts_end_with_the_webhooks_life(standin: Standin, receiver: Receiver) -> None:
    """The provider gives up; from then on only a poll finds out."""
    receiver.answers = [500] * 20
    made = standin.create({"standin": {"duration_s": 0, "webhook_life_s": 1}}, receiver.url(), ["completed"])
    healthy = standin.create({"standin": {"duration_s": 0, "webhook": "late", "late_s": 2.5}}, receiver.url())

    attempts(standin, healthy, 1)

    lines = attempts(standin, made, 3)
    assert [line["attempt"] for line in lines] == [1, 2, 3]
    assert lines[0]["webhook_id"] in standin.ledger()["summary"]["unacknowledged"]


def test_an_unreachable_receiver_is_tried_again(standin: Standin, receiver: Receiver) -> None:
    """A refused connection counts as no answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/hook"
        made = standin.create({"standin": {"duration_s": 0, "webhook_life_s": 0.5}}, url, ["completed"])

        lines = attempts(standin, made, 2)

    assert [line["answer"] for line in lines] == [None, None]
    assert all("ConnectionRefused" in line["error"] for line in lines)


def test_progress_is_never_tried_again(standin: Standin, receiver: Receiver) -> None:
    """Only terminal events are retried."""
    receiver.answers = [500]
    made = standin.create({"standin": {"duration_s": 2}}, receiver.url(), ["start", "completed"])

    lines = attempts(standin, made, 2)

    assert [(line["event"], line["answer"]) for line in lines] == [("start", 500), ("completed", 200)]


def test_late_comes_late(standin: Standin, receiver: Receiver) -> None:
    """The poll must be able to win the race."""
    made = standin.create({"standin": {"duration_s": 0, "webhook": "late", "late_s": 3}}, receiver.url())
    wait_for(lambda: standin.get(made["id"])["completed_at"])
    assert not receiver.got

    attempts(standin, made, 1)

    assert statuses(receiver) == ["succeeded"]


def test_double_comes_twice_under_one_id(standin: Standin, receiver: Receiver) -> None:
    """A duplicate is told by its webhook-id."""
    made = standin.create({"standin": {"duration_s": 0, "webhook": "double"}}, receiver.url())

    lines = attempts(standin, made, 2)

    assert len({line["webhook_id"] for line in lines}) == 1
    assert receiver.got[0].body == receiver.got[1].body


def test_double_new_id_comes_twice_under_two_ids(standin: Standin, receiver: Receiver) -> None:
    """Two webhooks for one completion: the id does not help."""
    made = standin.create({"standin": {"duration_s": 0, "webhook": "double_new_id"}}, receiver.url())

    lines = attempts(standin, made, 2)

    assert len({line["webhook_id"] for line in lines}) == 2
    assert statuses(receiver) == ["succeeded", "succeeded"]


def test_out_of_order_ends_with_processing(standin: Standin, receiver: Receiver) -> None:
    """A status must only move forward, whatever arrives last."""
    script = {"duration_s": 0, "webhook": "out_of_order"}
    made = standin.create({"standin": script}, receiver.url(), ["start", "completed"])

    attempts(standin, made, 2)

    assert statuses(receiver) == ["succeeded", "processing"]
    assert json.loads(receiver.got[1].body)["output"] is None


def test_missing_and_silence_send_nothing(standin: Standin, receiver: Receiver) -> None:
    """The webhook that never came: only the API knows of the end."""
    lost = standin.create({"standin": {"duration_s": 0, "webhook": "missing"}}, receiver.url())
    wait_for(lambda: standin.get(lost["id"])["completed_at"])
    standin.silence(60)
    silenced = standin.create({"standin": {"duration_s": 0}}, receiver.url())
    wait_for(lambda: standin.get(silenced["id"])["completed_at"])
    held = standin.create({"standin": {"duration_s": 0, "webhook": "late", "late_s": 3}}, receiver.url())
    wait_for(lambda: standin.get(held["id"])["completed_at"])
    standin.silence(0)

    attempts(standin, held, 1)

    assert [json.loads(delivery.body)["id"] for delivery in receiver.got] == [held["id"]]


def test_a_bad_signature_is_told_and_put_right_by_the_retry(standin: Standin, receiver: Receiver) -> None:
    """A receiver must refuse the first and take the second."""
    receiver.answers = [401]
    made = standin.create({"standin": {"duration_s": 0, "webhook": "bad_signature_first"}}, receiver.url())

    lines = attempts(standin, made, 2)

    assert [verified(standin, delivery) is not None for delivery in receiver.got] == [False, True]
    assert [(line["signed"], line["answer"]) for line in lines] == [(False, 401), (True, 200)]
    assert lines[0]["webhook_id"] not in standin.ledger()["summary"]["wrongly_signed_accepted"]


def test_a_receiver_that_takes_a_bad_signature_is_found_out(standin: Standin, receiver: Receiver) -> None:
    """The ledger must convict a receiver that verifies nothing."""
    made = standin.create({"standin": {"duration_s": 0, "webhook": "bad_signature_only"}}, receiver.url())

    line = attempts(standin, made, 1)[0]

    assert verified(standin, receiver.got[0]) is None
    assert line["webhook_id"] in standin.ledger()["summary"]["wrongly_signed_accepted"]
