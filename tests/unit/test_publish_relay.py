"""The thread that publishes wakes, so that no request waits for the broker."""

import threading

from moorage import ids, metrics
from moorage.model import Wake
from worker.publish import QUEUE_LENGTH, WakeRelay


def dropped() -> float:
    return metrics.REGISTRY.get_sample_value("moorage_wakes_dropped_total", {"reason": "full"}) or 0.0


def test_a_full_relay_drops_and_never_waits() -> None:
    """The request path must not feel the broker, whatever it does."""
    relay = WakeRelay(lambda wake: True)  # not started: nobody takes
    before = dropped()

    for _ in range(10):
        relay.enqueue(*(Wake("ingest", ids.uuid7()) for _ in range(QUEUE_LENGTH // 10 + 5)))

    assert dropped() - before == 50


def test_a_relay_survives_a_publisher_that_raises_and_goes_on() -> None:
    """The thread is the only one: if it died, every wake of this process would wait for dispatch."""
    sent: list[Wake] = []
    both = threading.Event()

    def send(wake: Wake) -> bool:
        sent.append(wake)
        if len(sent) == 1:
            raise ValueError("broken")
        both.set()
        return True

    relay = WakeRelay(send, pause_seconds=0.01)
    relay.start()
    wakes = [Wake("ingest", ids.uuid7()), Wake("ingest", ids.uuid7())]
    for wake in wakes:
        relay.enqueue(wake)

    assert both.wait(60)
    relay.stop(timeout_seconds=60)
    assert sent == wakes


def test_a_stopping_relay_sends_what_waits() -> None:
    """A clean stop costs no wake."""
    sent: list[Wake] = []
    relay = WakeRelay(lambda wake: not sent.append(wake))  # type: ignore[func-returns-value]
    wakes = [Wake("ingest", ids.uuid7()) for _ in range(100)]
    for wake in wakes:
        relay.enqueue(wake)

    relay.start()
    relay.stop(timeout_seconds=60)

    assert sent == wakes
