"""Parts of the receiver that need no server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
import uvloop

from moorage.errors import Refused
from receiver import deliveries, recorder, request_body
from receiver.responses import problem_response, send_response
from receiver.webhooks import parse_provider_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/webhooks/replicate", "replicate"),
        ("/api/webhooks/replicate/", "replicate"),
        ("/api/v1/webhooks/fal", "fal"),
        ("/webhooks/", None),
        ("/webhooks//", None),
        ("/webhooks/replicate//", None),
        ("/webhooks/a/b", None),
        ("/v1/webhooks/replicate", None),
        ("/webhook/replicate", None),
    ],
)
def test_the_provider_is_parsed_from_the_path(path: str, name: str | None) -> None:
    """One name and at most one trailing slash: no other path may reach a provider."""
    assert parse_provider_name(path) == name


@pytest.mark.parametrize(
    ("given", "expected"),
    [("msg_1", "msg_1"), (None, "sha256:abc"), ("x" * 500, "x" * 500)],
)
def test_a_webhook_id_is_the_providers_or_the_digest(given: str | None, expected: str) -> None:
    """The unique key of a delivery is never null."""
    assert deliveries.choose_webhook_id(given, "abc") == expected


def test_a_webhook_id_too_long_for_the_index_is_replaced_by_its_digest() -> None:
    """PostgreSQL rejects index rows above 2,704 bytes: the webhook could never be recorded."""
    first, second = deliveries.choose_webhook_id("x" * 501, "abc"), deliveries.choose_webhook_id("x" * 502, "abc")

    assert first != second
    assert max(len(first), len(second)) < 100


def arriving(*messages: dict[str, Any]) -> Any:
    queue = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(queue)

    return receive


def chunk(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def read_all(messages: Iterable[dict[str, Any]], in_flight: request_body.BytesInFlight, limit: int = 10) -> bytes:
    async with request_body.BodyReader(arriving(*messages), [], limit, in_flight) as body:
        assert in_flight.bytes == len(body)
        return body


def test_bytes_in_flight_are_released_however_a_request_ends() -> None:
    """A leak of a few bytes per rejected request would end in 503 for every sender."""
    in_flight = request_body.BytesInFlight(12)

    assert asyncio.run(read_all([chunk(b"abc", more=True), chunk(b"de", more=False)], in_flight)) == b"abcde"
    with pytest.raises(Refused) as refused:
        asyncio.run(read_all([chunk(b"123456", more=True), chunk(b"12345", more=True)], in_flight))
    assert refused.value.status == 413
    with pytest.raises(Refused):
        asyncio.run(read_all([chunk(b"123", more=True), {"type": "http.disconnect"}], in_flight))
    with pytest.raises(request_body.BytesInFlightExceeded):
        asyncio.run(read_all([chunk(b"1234567", more=True), chunk(b"123456", more=True)], in_flight, limit=99))
    assert in_flight.bytes == 0


async def read_slowly(body: bytes, pause: float, in_flight: request_body.BytesInFlight) -> bytes:
    """Read a body that never ends and arrives byte by byte."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return chunk(body, more=True)

    async with request_body.BodyReader(receive, [], 10**6, in_flight) as whole:
        return whole


@pytest.mark.parametrize(
    ("limits", "pause"),
    [
        ({"PAUSE_SECONDS": 0.05}, 60.0),  # nothing arrives
        ({"PAUSE_SECONDS": 0.2, "READ_SECONDS": 0.5, "MIN_BYTES_PER_SECOND": 1}, 0.02),  # fast enough, for too long
        ({"PAUSE_SECONDS": 0.2, "MIN_BYTES_PER_SECOND": 10**6}, 0.02),  # always something, and never enough
    ],
)
def test_a_slow_body_times_out(monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], pause: float) -> None:
    """Senders that never finish must not hold memory: neither by silence nor by one byte a second."""
    for name, value in limits.items():
        monkeypatch.setattr(request_body, name, value)
    in_flight = request_body.BytesInFlight(10**6)

    with pytest.raises(Refused, match="too slowly") as refused:
        asyncio.run(read_slowly(b"x", pause, in_flight))

    assert refused.value.status == 408
    assert (in_flight.bytes, in_flight.reads) == (0, set())


def test_the_slowest_large_body_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held connections that stop sending cannot keep others out; a small slow sender is spared as long as it can be."""
    monkeypatch.setattr(request_body, "EVICTION_SECONDS", 0.0)
    monkeypatch.setattr(request_body, "SMALL_BYTES", 10)
    in_flight = request_body.BytesInFlight(160)

    async def scenario() -> tuple[list[Any], bytes]:
        slow = asyncio.create_task(read_slowly(b"x" * 40, 0.01, in_flight))  # 4,000 bytes a second, until all is full
        await asyncio.sleep(0)
        small = asyncio.create_task(read_slowly(b"y" * 5, 60, in_flight))
        while in_flight.bytes < 120:
            await asyncio.sleep(0.001)
        body = await read_all([chunk(b"z" * 100, more=False)], in_flight, limit=200)
        small.cancel()
        return list(await asyncio.gather(slow, small, return_exceptions=True)), body

    async def read_whole() -> tuple[list[Any], bytes]:
        async with asyncio.timeout(60):
            return await scenario()

    (slow_end, small_end), body = asyncio.run(read_whole())

    assert isinstance(slow_end, request_body.BytesInFlightExceeded)
    assert isinstance(small_end, asyncio.CancelledError)
    assert body == b"z" * 100
    assert in_flight.bytes == 0


def test_room_is_reserved_for_small_bodies() -> None:
    """Large bodies that are being recorded cannot be evicted: small ones have a share of their own."""
    in_flight = request_body.BytesInFlight(1_000_000)
    in_flight.bytes = 860_000  # held by requests whose body is complete

    with pytest.raises(request_body.BytesInFlightExceeded):
        asyncio.run(read_all([chunk(b"x" * 70_000, more=False)], in_flight, limit=10**6))
    in_flight.bytes = 880_000

    async def read_small() -> bytes:
        async with request_body.BodyReader(arriving(chunk(b"x" * 60_000, more=False)), [], 10**6, in_flight) as body:
            return body

    assert len(asyncio.run(read_small())) == 60_000


def test_bodies_are_not_evicted_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that would not fit without them, either, is refused, and they are received."""
    monkeypatch.setattr(request_body, "EVICTION_SECONDS", 0.0)
    in_flight = request_body.BytesInFlight(1_000_000)
    in_flight.bytes = 700_000  # held by requests whose body is complete

    async def scenario() -> list[Any]:
        slow = asyncio.create_task(read_slowly(b"x" * 1000, 0.001, in_flight))
        while in_flight.bytes == 700_000:
            await asyncio.sleep(0.001)
        with pytest.raises(request_body.BytesInFlightExceeded, match="limit"):
            await read_all([chunk(b"z" * 400_000, more=False)], in_flight, limit=10**6)
        await asyncio.sleep(0)
        slow.cancel()
        return await asyncio.gather(slow, return_exceptions=True)

    (end,) = asyncio.run(scenario())

    assert isinstance(end, asyncio.CancelledError)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_webhook_that_arrives_as_a_batch_ends_is_sent(
    monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Else the last one of a burst would wait for the next, or for its deadline and a 503."""

    class Connections:
        @contextlib.asynccontextmanager
        async def acquire(self) -> AsyncIterator[None]:
            yield None

    async def insert(_: object, batch: Sequence[deliveries.NewDelivery]) -> dict[UUID, deliveries.RecordedDelivery]:
        await asyncio.sleep(0)
        return {item.id: deliveries.RecordedDelivery(item.id, is_new=True, is_pending=True) for item in batch}

    async def record_pairs() -> None:
        connections: Any = Connections()
        for turns in range(40):  # of the loop between the two: one is that in which the batch ends
            sender = recorder.DeliveryRecorder(connections, answer_seconds=30.0)
            ids = [uuid4(), uuid4()]
            new = [deliveries.NewDelivery(id_, "p", str(id_), {}, b"", "") for id_ in ids]
            first = asyncio.create_task(sender.record(new[0]))
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                recorded = await asyncio.gather(first, sender.record(new[1]))
            assert [row.id for row in recorded] == ids

    monkeypatch.setattr(recorder, "insert_deliveries", insert)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(record_pairs())


def test_a_response_to_head_has_headers_and_no_body() -> None:
    """A body after HEAD would be parsed as the next response on the connection."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(send_response(send, problem_response(404, "nothing is here"), method="HEAD"))

    assert dict(sent[0]["headers"])[b"content-type"] == b"application/problem+json"
    assert sent[1]["body"] == b""


def test_a_refusal_during_a_write_is_written_by_the_next_one(monkeypatch):
    """It waited for a later refusal, which may never come."""
    written = []

    class Connections:
        @contextlib.asynccontextmanager
        async def acquire(self):
            yield self

        async def execute(self, _sql, args):
            written.append((args["value"], args["reason"]))
            if len(written) == 1:
                refusals.add("replicate", "second")

    monkeypatch.setattr(recorder, "REFUSAL_SECONDS", 0.0)
    refusals = recorder.RefusalRecorder(Connections())

    async def refuse():
        refusals.add("replicate", "first")
        await refusals._task

    asyncio.run(refuse())
    assert written == [(1, "first"), (1, "second")]
