"""A streamed file and a client that reads nothing."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest

from web.services import asset_stream
from web.services.asset_stream import AssetResponse


@pytest.fixture(autouse=True)
def stall_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asset_stream, "STALL_SECONDS", 0.05)


async def chunks() -> AsyncIterator[bytes]:
    while True:
        yield b"x"


def stream(send: Any) -> list[str]:
    """Send an endless file; return which resources were released."""
    released: list[str] = []

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def respond() -> None:
        response = AssetResponse(chunks(), 200, {}, lambda: released.append("all"))
        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    try:
        asyncio.run(asyncio.wait_for(respond(), 50))
    finally:
        released.append("over")
    return released


def test_a_client_that_reads_nothing_is_disconnected_and_its_slot_released() -> None:
    """Assets need no token: 64 stalled clients blocked the files of all others."""
    sent = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])
        if len(sent) == 3:
            await asyncio.sleep(60)

    released = stream(send)

    assert released == ["all", "over"]
    assert sent == ["http.response.start", "http.response.body", "http.response.body"]


def test_other_timeouts_are_raised() -> None:
    """A timeout of storage is not the client's fault and must not be swallowed."""

    async def send(_message: MutableMapping[str, Any]) -> None:
        raise TimeoutError("storage")

    with pytest.raises(TimeoutError, match="storage"):
        stream(send)
