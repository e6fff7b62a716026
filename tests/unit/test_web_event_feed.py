"""What one stream is offered, and when it is disconnected."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar, cast

from starlette.types import Message

from web.api import events
from web.services import event_feed
from web.services.context import AppContext
from web.services.event_feed import Subscription

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 50))


def event(number: int, owner: str | None = "ada") -> dict[str, Any]:
    return {"id": number, "owner": owner}


def test_a_slow_subscription_ends_after_its_buffered_events() -> None:
    """Its buffer must not grow without bound; the client reconnects and resumes after the last event."""

    async def work() -> list[int]:
        subscription = Subscription(None)
        for number in range(event_feed.MAX_BUFFERED + 5):
            subscription.offer(event(number))
        received = []
        while (row := await subscription.next(1)) is not None:
            received.append(row["id"])
        assert subscription.is_ended
        return received

    assert run(work()) == list(range(event_feed.MAX_BUFFERED))


def test_a_subscription_receives_only_its_owners_events() -> None:
    """Events without an owner are excluded, too: a delivery that is not parsed yet may belong to any owner."""

    async def work() -> list[Any]:
        of_ada, of_all = Subscription("ada"), Subscription(None)
        for number, owner in enumerate(("bob", "ada", None)):
            of_ada.offer(event(number, owner))
            of_all.offer(event(number, owner))
        return [await of_ada.next(0.01), await of_ada.next(0.01), (await of_all.next(0.01) or {})["owner"]]

    assert run(work()) == [event(1, "ada"), None, "bob"]


def test_an_event_at_the_moment_of_the_timeout_is_delivered() -> None:
    """The keep-alive comment after an empty wait carries an id: an event skipped there would be lost."""

    async def work() -> Any:
        subscription = Subscription(None)
        waits = asyncio.create_task(subscription.next(0.01))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(subscription.offer, event(7))
        time.sleep(0.02)  # both are due now: the offer, and behind it the end of the wait
        return await waits

    assert run(work()) == event(7)


def test_a_stalled_stream_is_disconnected_and_unsubscribed() -> None:
    """A client that opens streams and reads nothing would use up all streams."""
    unsubscribed: list[Subscription] = []

    class FakeFeed:
        def unsubscribe(self, subscription: Subscription) -> None:
            unsubscribed.append(subscription)

    class FakeContext:
        feed = FakeFeed()

    async def lines() -> AsyncIterator[bytes]:
        while True:
            yield b": nothing new\n\n"

    async def never(_message: Message) -> None:
        await asyncio.sleep(60)

    async def silent() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def work() -> None:
        answer = events._EventStreamResponse(cast(AppContext, FakeContext()), subscription, lines(), 0.05)
        await answer({"type": "http", "asgi": {"spec_version": "2.4"}}, silent, never)

    subscription = Subscription("ada")
    run(work())

    assert unsubscribed == [subscription]
