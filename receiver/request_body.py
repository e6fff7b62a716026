"""Reads request bodies up to a limit, and bounds the bytes held by all requests together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from moorage.asgi import Receive
from moorage.errors import Refused, Transient
from receiver.responses import Headers

READ_SECONDS: Final = 30.0  # for the whole body; 16 MiB in 30 s is 560 kB/s


class BytesInFlightExceeded(Transient):
    """Too many bytes in flight: the sender should retry."""


class BytesInFlight:
    """Counts the body bytes held by all requests of one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.bytes = 0

    def check(self, more: int) -> None:
        if self.bytes + more > self._limit:
            raise BytesInFlightExceeded(f"{self.bytes} bytes are in flight and {self._limit} is the limit")

    def add(self, more: int) -> None:
        """Count `more` bytes as held, or raise BytesInFlightExceeded and count nothing."""
        self.check(more)
        self.bytes += more


@contextlib.asynccontextmanager
async def read_body(
    receive: Receive, headers: Headers, max_bytes: int, in_flight: BytesInFlight
) -> AsyncIterator[bytes]:
    """Yield the body, in flight until the block ends. Raises Refused: 413, 400 incomplete; BytesInFlightExceeded."""
    declared = _content_length(headers)
    if declared > max_bytes:
        raise _too_large(max_bytes)
    in_flight.check(declared)
    chunks: list[bytes] = []
    try:
        await _read_within_limit(receive, chunks, max_bytes, in_flight)
        yield b"".join(chunks)
    finally:
        in_flight.bytes -= sum(map(len, chunks))


async def _read_within_limit(receive: Receive, chunks: list[bytes], max_bytes: int, in_flight: BytesInFlight) -> None:
    size, more = 0, True
    try:
        async with asyncio.timeout(READ_SECONDS):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused("the request ended before its body (short body or broken chunking): retry")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                in_flight.add(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise Refused(f"the body did not arrive within {READ_SECONDS:.0f} s: retry") from error


def _content_length(headers: Headers) -> int:
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise Refused("Content-Length is not a number of bytes")
            return int(value)
    return 0


def _too_large(max_bytes: int) -> Refused:
    return Refused(f"the body is larger than {max_bytes} bytes (MOORAGE_WEBHOOK_MAX_BYTES)", status=413)
