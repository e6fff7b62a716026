"""The thread that publishes wakes, so that no request waits for the broker."""

import threading
from collections.abc import Sequence

import pytest

from moorage import ids, metrics
from moorage.model import Wake
from worker import publish
from worker.publish import QUEUE_LENGTH, WakeRelay


def dropped() -> float:
    return metrics.REGISTRY.get_sample_value("moorage_wakes_dropped_total", {"reason": "full"}) or 0.0


def test_a_full_relay_drops_and_never_waits() -> None:
    """The request path must not feel the broker, whatever it does."""
    relay = WakeRelay(len)  # not started: nobody takes
    before = dropped()

    for _ in range(10):
        relay.enqueue(*(Wake("ingest", ids.uuid7()) for _ in range(QUEUE_LENGTH // 10 + 5)))

    assert dropped() - before == 50


def test_a_relay_survives_a_publisher_that_raises_and_goes_on() -> None:
    """The thread is the only one: if it died, every wake of this process would wait for dispatch."""
    sent: list[Wake] = []
    both = threading.Event()

    def send(wakes: Sequence[Wake]) -> int:
        sent.extend(wakes)
        if len(sent) == 1:
            relay.enqueue(second)
            raise ValueError("broken")
        both.set()
        return len(wakes)

    relay = WakeRelay(send, pause_seconds=0.01)
    first, second = Wake("ingest", ids.uuid7()), Wake("ingest", ids.uuid7())
    relay.enqueue(first)
    relay.start()

    assert both.wait(60)
    relay.stop(timeout_seconds=60)
    assert sent == [first, second]


def test_the_first_wake_is_sent_at_once_and_those_that_follow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each publication takes the GIL from the event loop. A clean stop waits for nothing and costs no wake."""
    monkeypatch.setattr(publish, "GATHER_SECONDS", 600.0)
    batches: list[Sequence[Wake]] = []
    sent = threading.Event()

    def send(wakes: Sequence[Wake]) -> int:
        batches.append(wakes)
        sent.set()
        return len(wakes)

    relay = WakeRelay(send)
    first, *others = [Wake("ingest", ids.uuid7()) for _ in range(300)]

    relay.start()
    relay.enqueue(first)
    assert sent.wait(60)
    for wake in others:
        relay.enqueue(wake)
    relay.stop(timeout_seconds=60)

    assert batches == [[first], others]


def test_wakes_that_the_broker_did_not_take_are_counted() -> None:
    """A broker that fails in the middle of a batch has the first part of it."""
    names = ("moorage_wakes_sent_total", {}), ("moorage_wakes_dropped_total", {"reason": "failed"})
    before = [metrics.REGISTRY.get_sample_value(*name) or 0.0 for name in names]
    relay = WakeRelay(lambda wakes: len(wakes) - 3, pause_seconds=0.01)
    relay.enqueue(*(Wake("ingest", ids.uuid7()) for _ in range(10)))

    relay.start()
    relay.stop(timeout_seconds=60)

    after = [metrics.REGISTRY.get_sample_value(*name) or 0.0 for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [7, 3]


def test_one_wake_is_published_for_a_batch_of_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task claims the others: a burst must not cost a message and a task for each webhook."""
    published: list[Wake] = []
    monkeypatch.setattr(publish, "publish_wakes", lambda wakes: published.extend(wakes) or len(wakes))
    wakes = [Wake("ingest", ids.uuid7()) for _ in range(130)]

    assert publish.publish_ingest_wakes(wakes) == 130

    assert published == [wakes[0], wakes[64], wakes[128]]
