"""Reads request bodies up to a limit, and bounds the bytes held by all requests together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.types import Receive

from moorage.errors import Refused, Transient
from receiver.responses import Headers

READ_SECONDS: Final = 30.0  # for the whole body; 16 MiB in 30 s is 560 kB/s
PAUSE_SECONDS: Final = 5.0  # between two parts of a body, and before the minimum speed counts
MIN_BYTES_PER_SECOND: Final = 16 * 2**10
SMALL_BYTES: Final = 64 * 2**10  # webhooks without base64 files are below it
RESERVED_SHARE: Final = 8  # one eighth of the limit is only for small bodies
EVICTION_SECONDS: Final = 1.0  # a body that is read for less is not evicted: its speed is not known yet


class BytesInFlightExceeded(Transient):
    """Too many bytes in flight: the sender should retry."""


class BodyRead:
    """A body that is being read: its parts and size so far, and until when the next part must arrive."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self.is_evicted = False
        self.timeout = asyncio.timeout(PAUSE_SECONDS)
        self._started = asyncio.get_running_loop().time()

    def age(self) -> float:
        return asyncio.get_running_loop().time() - self._started

    def evict(self) -> None:
        """End the read at the next turn of the event loop; its bytes are free at once."""
        self.is_evicted = True
        self.chunks.clear()
        self.size = 0
        self.timeout.reschedule(asyncio.get_running_loop().time())

    def extend_deadline(self) -> None:
        now = asyncio.get_running_loop().time()
        slowest = self._started + PAUSE_SECONDS + self.size / MIN_BYTES_PER_SECOND
        self.timeout.reschedule(min(self._started + READ_SECONDS, now + PAUSE_SECONDS, slowest))


class BytesInFlight:
    """
    Counts the body bytes held by all requests of one event loop.

    When they reach the limit, the slowest body that is being read is evicted, large ones first: connections that send
    a part of their body and then nothing cannot keep others out.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.reads: set[BodyRead] = set()  # those that may be evicted
        self.bytes = 0

    def add(self, read: BodyRead, chunk: bytes) -> None:
        self.make_room(read, len(chunk))
        read.chunks.append(chunk)
        read.size += len(chunk)
        self.bytes += len(chunk)

    def make_room(self, read: BodyRead, more: int) -> None:
        """Evict others until `more` bytes of a body fit, or raise BytesInFlightExceeded."""
        is_large = read.size + more > SMALL_BYTES
        limit = self._limit - self._limit // RESERVED_SHARE if is_large else self._limit
        while self.bytes + more > limit:
            others = (x for x in self.reads if x is not read and x.size > 0 and x.age() >= EVICTION_SECONDS)
            slowest = min(others, key=lambda other: (other.size <= SMALL_BYTES, other.size / other.age()), default=None)
            if slowest is None:
                raise BytesInFlightExceeded(f"{self.bytes} bytes are in flight and {limit} is the limit")
            self.bytes -= slowest.size
            slowest.evict()


@contextlib.asynccontextmanager
async def read_body(
    receive: Receive, headers: Headers, max_bytes: int, in_flight: BytesInFlight
) -> AsyncIterator[bytes]:
    """
    Yield the body, in flight until the block ends.

    Raises Refused: 413, 408 too slow, 400 incomplete; BytesInFlightExceeded: no room, or evicted.
    """
    declared = _content_length(headers)
    if declared > max_bytes:
        raise _too_large(max_bytes)
    read = BodyRead()
    in_flight.make_room(read, declared)
    in_flight.reads.add(read)
    try:
        await _read_chunks(receive, read, max_bytes, in_flight)
        in_flight.reads.discard(read)  # complete: it is not evicted while it is recorded
        yield b"".join(read.chunks)
    finally:
        in_flight.reads.discard(read)
        in_flight.bytes -= read.size


async def _read_chunks(receive: Receive, read: BodyRead, max_bytes: int, in_flight: BytesInFlight) -> None:
    more = True
    try:
        async with read.timeout:
            while more:
                message = await receive()
                if read.is_evicted:
                    raise TimeoutError
                if message["type"] != "http.request":
                    raise Refused("the request ended before its body (short body or broken chunking): retry")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if read.size + len(chunk) > max_bytes:
                    raise _too_large(max_bytes)
                in_flight.add(read, chunk)
                if more:
                    read.extend_deadline()
    except TimeoutError as error:
        if read.is_evicted:
            evicted = "the limit of bytes in flight was reached, and this body arrived slower than others"
            raise BytesInFlightExceeded(evicted) from error
        raise Refused(
            f"the body arrived too slowly: {read.size} bytes in {read.age():.0f} s, at least"
            f" {MIN_BYTES_PER_SECOND // 1024} kB/s and all within {READ_SECONDS:.0f} s are needed: retry",
            status=408,
        ) from error


def _content_length(headers: Headers) -> int:
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise Refused("Content-Length is not a number of bytes")
            return int(value)
    return 0


def _too_large(max_bytes: int) -> Refused:
    return Refused(f"the body is larger than {max_bytes} bytes (MOORAGE_WEBHOOK_MAX_BYTES)", status=413)
