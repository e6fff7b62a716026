"""GET /v1/events: what happens, as it happens, as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from db import events
from db.connection import Connection, Row
from web.http import permissions, validation
from web.http import query as queries
from web.services import context
from web.services.context import AppContext
from web.services.event_feed import Subscription

KEEP_ALIVE_SECONDS: Final = 15.0
MAX_STREAM_SECONDS: Final = (
    300.0  # then the browser comes again by itself, with Last-Event-ID and whatever token it has
)
GRACE_SECONDS: Final = 15.0  # for what is in the buffer of a reader that reads slowly; one that reads nothing is cut
MAX_RESUME_IDS: Final = 100_000  # ids behind the present: who was away for longer reads the lists again
RETRY_MS: Final = 2000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class StreamRange:
    """Which events a stream tells, and from where to where."""

    owner: str | None
    job_id: UUID | None
    after: int | None  # the id it goes on behind; None: it begins now
    joined_at_id: int  # what comes after this id is offered by the feed
    ends_at: float  # by time.monotonic()


async def stream_events(request: Request) -> Response:
    """Answer 200 with a stream that begins now, or behind the event that Last-Event-ID names."""
    at, caller = context.get_context(request), permissions.get_caller(request)
    query = queries.parse_query(request, queries.StreamQuery)
    owner, last = caller.resolve_owner(query.owner), _parse_last_event_id(request)
    seconds = (
        MAX_STREAM_SECONDS
        if caller.expires_unix is None
        else min(MAX_STREAM_SECONDS, caller.expires_unix - time.time())
    )
    reader = await at.feed.subscribe(owner)
    wanted = StreamRange(owner, query.job_id, last, at.feed.position, time.monotonic() + seconds)
    return _EventStreamResponse(at, reader, _stream_lines(at, reader, wanted), seconds + GRACE_SECONDS)


def _parse_last_event_id(request: Request) -> int | None:
    given = request.headers.get("last-event-id")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 19 and int(given) <= queries.MAX_EVENT_ID):
        raise validation.invalid_field(
            "Last-Event-ID", "is not the id of an event: send what the stream gave, or leave it out"
        )
    return int(given)


async def _stream_lines(at: AppContext, reader: Subscription, wanted: StreamRange) -> AsyncIterator[bytes]:
    """Yield what was missed up to where the reader joined, then what it is offered, each event once."""
    sent = wanted.joined_at_id if wanted.after is None else wanted.after
    yield f": moorage\nretry: {RETRY_MS}\nid: {sent}\n\n".encode()
    if wanted.after is not None and (why := await _find_reset_reason(at, wanted.after, wanted.joined_at_id)):
        sent = wanted.joined_at_id
        yield _format_block(sent, "reset", {"reason": why})
    while sent < wanted.joined_at_id:
        until = min(wanted.joined_at_id, sent + events.MAX_ID_SPAN)
        for row in await _read_missed(at, wanted, sent, until):
            yield _format_event(row)
        sent = until
    while not _is_expired(wanted):
        told = await reader.next(_wait_seconds(wanted))
        if told is None and reader.is_ended:
            break
        if told is None:
            sent = max(sent, at.feed.position)  # all up to there was offered, and the buffer is empty
            yield f": nothing new\nid: {sent}\n\n".encode()
        elif told["id"] > sent:
            sent = told["id"]
            if wanted.job_id in (None, told["job_id"]):
                yield _format_event(told)


async def _find_reset_reason(at: AppContext, after: int, joined: int) -> str | None:
    """Return why a stream cannot go on behind an event, None where it can."""

    def look(conn: Connection) -> tuple[int | None, int]:
        return events.get_oldest_id(conn), events.get_last_id(conn)

    oldest, drawn = await at.database.run(lambda database: database.run(look))
    if after > drawn:
        return "there is no such event yet: the database was put back"
    if joined - after > MAX_RESUME_IDS:
        return "too much has happened since"
    if oldest is not None and after < oldest - 1:
        return "events of that time were removed"
    return None


async def _read_missed(at: AppContext, wanted: StreamRange, after: int, until: int) -> list[Row]:
    def look(conn: Connection) -> list[Row]:
        return events.list_between(conn, after, until, job_id=wanted.job_id, owner=wanted.owner)

    return await at.database.run(lambda database: database.run(look))


def _wait_seconds(wanted: StreamRange) -> float:
    return max(0.0, min(KEEP_ALIVE_SECONDS, wanted.ends_at - time.monotonic()))


def _is_expired(wanted: StreamRange) -> bool:
    return time.monotonic() >= wanted.ends_at


def _format_event(row: Row) -> bytes:
    return _format_block(row["id"], row["subject"], row)


def _format_block(event_id: int, name: str, fields: dict[str, Any]) -> bytes:
    data = json.dumps(fields, default=lambda value: value.isoformat() if hasattr(value, "isoformat") else str(value))
    return f"id: {event_id}\nevent: {name}\ndata: {data}\n\n".encode()


class _EventStreamResponse(StreamingResponse):
    """A stream that leaves the feed however it ends, and ends also when nobody reads it."""

    def __init__(self, at: AppContext, reader: Subscription, lines: AsyncIterator[bytes], seconds: float) -> None:
        super().__init__(lines, headers=_HEADERS, media_type="text/event-stream")
        self._at, self._reader, self._seconds = at, reader, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it until its time is over, the reader goes, or the process does."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass  # a reader that reads nothing: the connection is cut
        finally:
            self._at.feed.unsubscribe(self._reader)
