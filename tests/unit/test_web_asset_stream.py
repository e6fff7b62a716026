"""A streamed file and the reader that reads nothing."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest

from web.services.asset_stream import AssetResponse


async def chunks() -> AsyncIterator[bytes]:
    while True:
        yield b"x"


def stream(send: Any) -> list[str]:
    """Send a file that does not end; returns what was let go."""
    gone: list[str] = []

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def answer() -> None:
        held = AssetResponse(chunks(), 200, {}, lambda: gone.append("all"), stall_seconds=0.05)
        await held({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    try:
        asyncio.run(asyncio.wait_for(answer(), 50))
    finally:
        gone.append("over")
    return gone


def test_a_reader_that_takes_nothing_is_cut_and_its_place_is_free() -> None:
    """Files need no token: 64 readers that read nothing kept everybody's files away for ever."""
    sent = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])
        if len(sent) == 3:
            await asyncio.sleep(60)

    gone = stream(send)

    assert gone == ["all", "over"]
    assert sent == ["http.response.start", "http.response.body", "http.response.body"]


def test_what_else_runs_out_of_time_is_told() -> None:
    """A time-out of storage is no reader's fault, and must not end in silence."""

    async def send(_message: MutableMapping[str, Any]) -> None:
        raise TimeoutError("storage")

    with pytest.raises(TimeoutError, match="storage"):
        stream(send)
