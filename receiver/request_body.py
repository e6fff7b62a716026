"""Reads request bodies up to a limit, and bounds the bytes held by all requests together."""

import asyncio
from typing import Final, cast

from starlette.types import Receive

from moorage.errors import MoorageError, Refused, Transient
from receiver.responses import Headers

READ_SECONDS: Final = 30.0  # for the whole body; 16 MiB in 30 s is 560 kB/s
PAUSE_SECONDS: Final = 5.0  # between two parts of a body, and before the minimum speed counts
MIN_BYTES_PER_SECOND: Final = 16 * 2**10
SMALL_BYTES: Final = 64 * 2**10  # webhooks without base64 files are below it
RESERVED_SHARE: Final = 8  # one eighth of the limit is only for small bodies
CHECK_SECONDS: Final = 0.1  # between two checks of the deadlines of all bodies
EVICTION_SECONDS: Final = 1.0  # a body that is read for less is not evicted: its speed is not known yet


class BytesInFlightExceeded(Transient):
    """Too many bytes in flight: the sender should retry."""


class BytesInFlight:
    """
    Counts the body bytes held by all requests of one event loop, and ends the bodies that arrive too slowly.

    When they reach the limit, the slowest body that is being read is evicted, large ones first: connections that send
    a part of their body and then nothing cannot keep others out.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.reads: set[BodyReader] = set()  # those that may be evicted
        self.bytes = 0
        self._timer: asyncio.TimerHandle | None = None  # one for all, as deadlines only move back: it saves 10 us each

    def start(self, read: "BodyReader", declared_bytes: int) -> None:
        self.make_room(read, declared_bytes)
        self.reads.add(read)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(read.deadline, self._end_late)

    def add(self, read: "BodyReader", chunk: bytes) -> None:
        self.make_room(read, len(chunk))
        read.chunks.append(chunk)
        read.size += len(chunk)
        self.bytes += len(chunk)

    def make_room(self, read: "BodyReader", more: int) -> None:
        """Evict others until `more` bytes of a body fit, or raise BytesInFlightExceeded."""
        is_large = read.size + more > SMALL_BYTES
        limit = self._limit - self._limit // RESERVED_SHARE if is_large else self._limit
        while self.bytes + more > limit:
            others = [x for x in self.reads if x is not read and x.size > 0 and x.age() >= EVICTION_SECONDS]
            if self.bytes + more - sum(other.size for other in others) > limit:
                raise BytesInFlightExceeded(f"{self.bytes} bytes are in flight and {limit} is the limit")
            slowest = min(others, key=lambda other: (other.size <= SMALL_BYTES, other.size / other.age()))
            evicted = "the limit of bytes in flight was reached, and this body arrived slower than others"
            self._end(slowest, BytesInFlightExceeded(evicted))

    def release(self, read: "BodyReader") -> None:
        self.reads.discard(read)
        self.bytes -= read.size
        read.size = 0
        read.chunks.clear()

    def _end(self, read: "BodyReader", error: MoorageError) -> None:
        """End a read at the next turn of the event loop; its bytes are free at once."""
        self.release(read)
        read.error = error
        read.task.cancel()

    def _end_late(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for read in [read for read in self.reads if read.deadline <= now]:
            needed = f"at least {MIN_BYTES_PER_SECOND // 1024} kB/s and all within {READ_SECONDS:.0f} s are needed"
            slow = f"the body arrived too slowly: {read.size} bytes in {read.age():.0f} s, {needed}: retry"
            self._end(read, Refused(slow, status=408))
        following = min((read.deadline for read in self.reads), default=None)
        self._timer = loop.call_at(max(following, now + CHECK_SECONDS), self._end_late) if following else None


class BodyReader:
    """A body, in flight until the block ends. Raises Refused: 413, 408 too slow, 400; or BytesInFlightExceeded."""

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int, in_flight: BytesInFlight) -> None:
        self._receive, self._headers, self._max_bytes, self._in_flight = receive, headers, max_bytes, in_flight
        self._started = asyncio.get_running_loop().time()
        self.deadline = self._started + PAUSE_SECONDS  # of the next part
        self.task: Final = cast("asyncio.Task[None]", asyncio.current_task())
        self.chunks: list[bytes] = []
        self.size = 0
        self.error: MoorageError | None = None  # why the task was cancelled

    async def __aenter__(self) -> bytes:
        declared = _content_length(self._headers)
        if declared > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._in_flight.start(self, declared)
        try:
            await self._read_chunks()
        except BaseException as error:
            self._in_flight.release(self)
            if isinstance(error, asyncio.CancelledError) and self.error and not self.task.uncancel():
                raise self.error from error  # nothing else has cancelled the task
            raise
        self._in_flight.reads.discard(self)  # complete: it is not evicted while it is recorded
        return b"".join(self.chunks)

    async def __aexit__(self, *_: object) -> None:
        self._in_flight.release(self)

    async def _read_chunks(self) -> None:
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Refused("the request ended before its body (short body or broken chunking): retry")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if self.size + len(chunk) > self._max_bytes:
                raise _too_large(self._max_bytes)
            self._in_flight.add(self, chunk)
            if more:
                now = asyncio.get_running_loop().time()
                slowest = self._started + PAUSE_SECONDS + self.size / MIN_BYTES_PER_SECOND
                self.deadline = min(self._started + READ_SECONDS, now + PAUSE_SECONDS, slowest)

    def age(self) -> float:
        return asyncio.get_running_loop().time() - self._started


def _content_length(headers: Headers) -> int:
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise Refused("Content-Length is not a number of bytes")
            return int(value)
    return 0


def _too_large(max_bytes: int) -> Refused:
    return Refused(f"the body is larger than {max_bytes} bytes (MOORAGE_WEBHOOK_MAX_BYTES)", status=413)
