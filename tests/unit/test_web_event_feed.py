"""What one stream is offered, and when it is disconnected."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar, cast

import pytest
from starlette.types import Message

from web.api import events
from web.http.problems import Problem
from web.services import event_feed
from web.services.context import AppContext
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed, Subscription

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


class FakeDatabase:
    """Has three events, and is read once for all streams."""

    def __init__(self, owners: tuple[str | None, ...] = ()) -> None:
        self.owners, self.reads = owners, 0

    async def transaction(self, work: Any) -> Any:
        """Return the final id, or the events of a page."""
        if getattr(work, "__name__", "") == "_find_final_id":
            return len(self.owners)
        self.reads += 1
        return [event(number, owner) for number, owner in enumerate(self.owners, 1)]


def new_feed(max_streams: int = 100, *owners: str | None) -> EventFeed:
    return EventFeed(cast(DatabaseThreads, FakeDatabase(owners)), max_streams)


def test_a_subscription_receives_only_its_owners_events() -> None:
    """Events without an owner are excluded, too: a delivery that is not parsed yet may belong to any owner."""

    async def work() -> list[Any]:
        feed = new_feed(100, "bob", "ada", None)
        of_ada, of_all = await feed.subscribe("ada"), await feed.subscribe(None)
        await feed._offer_page(3)
        seen = [[row["id"] async for row in drain(stream)] for stream in (of_ada, of_all)]
        feed.unsubscribe(of_ada)
        feed.unsubscribe(of_all)
        return seen

    assert run(work()) == [[2], [1, 2, 3]]


async def drain(subscription: Subscription) -> AsyncIterator[dict[str, Any]]:
    while (row := await subscription.next(0.01)) is not None:
        yield row


def test_a_thousand_streams_are_served_by_one_read() -> None:
    """A reader for each stream would be as many queries a second."""

    async def work() -> tuple[int, int]:
        feed = new_feed(2000, *["ada"] * 3)
        streams = [await feed.subscribe(f"owner-{n}") for n in range(1000)] + [await feed.subscribe("ada")]
        await feed._offer_page(3)
        offered = sum(len(stream._buffer) for stream in streams)
        for stream in streams:
            feed.unsubscribe(stream)
        return cast(FakeDatabase, feed._database).reads, offered

    assert run(work()) == (1, 3)


@pytest.mark.parametrize("owners", [10, 99])
def test_owners_with_many_streams_shut_nobody_out(owners: int) -> None:
    """Ten owners with ten streams each had all of a hundred streams."""

    async def work() -> tuple[bool, list[int]]:
        feed = new_feed(100)
        held = [await feed.subscribe(f"owner-{n % owners}") for n in range(100)]
        newcomer = await feed.subscribe("newcomer")
        return newcomer.is_ended, [n for n, stream in enumerate(held) if stream.is_ended]

    assert run(work()) == (False, [0])


def test_a_full_process_refuses_an_owner_that_has_its_share() -> None:
    """Otherwise streams would end each other in turn."""

    async def work() -> None:
        feed = new_feed(4)
        for n in range(4):
            await feed.subscribe(f"owner-{n % 2}")
        with pytest.raises(Problem, match="too many"):
            await feed.subscribe("owner-0")
        await feed.subscribe("owner-2")
        with pytest.raises(Problem, match="too many"):
            await feed.subscribe("owner-0")

    run(work())


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


def test_a_stream_refused_as_polling_starts_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first poll succeeded in the moment its limit expired: the client got 503, and its place was lost for ever."""
    monkeypatch.setattr(event_feed, "START_TIMEOUT_SECONDS", 0.01)

    async def never(_work: Any) -> None:
        await asyncio.sleep(60)

    async def work() -> tuple[BaseException | None, list[Subscription]]:
        feed = new_feed()
        monkeypatch.setattr(feed._database, "transaction", never)
        waits = asyncio.create_task(feed.subscribe("ada"))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(feed._started.set)
        time.sleep(0.02)  # both are due now: the start, and behind it the end of the wait
        await asyncio.wait([waits])
        return waits.exception(), feed._list_subscriptions()

    refused, held = run(work())

    assert isinstance(refused, Problem)
    assert (refused.status, held) == (503, [])


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


@pytest.mark.parametrize(("hard", "streams"), [(1024, 512), (4096, 2596), (20_000, 5000), (-1, 5000)])
def test_streams_leave_files_for_webhooks(monkeypatch: pytest.MonkeyPatch, hard: int, streams: int) -> None:
    """A process without a free file accepts no webhook."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(event_feed.resource, "getrlimit", lambda _which: (1024, hard))
    monkeypatch.setattr(event_feed.resource, "setrlimit", lambda _which, limits: raised.append(limits))

    assert event_feed.limit_to_files(5000) == streams
    assert raised == ([] if hard == 1024 else [(min(hard, 6500) if hard > 0 else 6500, hard)])
