"""GET /v1/events: state transitions as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Header
from pydantic import BeforeValidator
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from db import events
from web.http import query, visibility
from web.http.permissions import Level
from web.http.query import Filters, StreamQuery
from web.http.router import Router
from web.services.context import AnyCaller, AppContext, Context
from web.services.event_feed import Subscription

router: Final = Router(prefix="/events", tags=["events"])

KEEP_ALIVE_SECONDS: Final = 15.0
MAX_STREAM_SECONDS: Final = 300.0  # then the browser reconnects, with Last-Event-ID and its present token
GRACE_SECONDS: Final = 15.0  # for the buffer of a slow client; one that reads nothing is disconnected
MAX_RESUME_IDS: Final = 100_000  # a client further behind must read the lists again
RETRY_MS: Final = 2000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class StreamRange:
    level: Level
    job_id: UUID | None
    after: int | None  # the id to resume after; None: start with new events
    joined_at_id: int  # later events come from the feed
    ends_at: float  # by time.monotonic()


def _parse_event_id(value: str) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 19) or int(value) > query.MAX_EVENT_ID:
        raise ValueError("is not an event id: send an id of this stream or omit it")
    return int(value)


LastEventId = Annotated[
    Annotated[int | None, BeforeValidator(_parse_event_id)],
    Header(alias="Last-Event-ID", description="resume after this event", examples=[4711]),
]


@router.get(
    "",
    response_class=Response,
    responses={
        200: {"description": "server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    },
)
async def stream_events(
    params: Filters[StreamQuery], caller: AnyCaller, ctx: Context, last_id: LastEventId = None
) -> Response:
    """Return a stream of new events, or of those after Last-Event-ID."""
    owner, seconds = caller.resolve_owner(params.owner), MAX_STREAM_SECONDS
    if caller.expires_unix is not None:
        seconds = min(seconds, caller.expires_unix - time.time())
    subscription = await ctx.feed.subscribe(owner, caller.token, caller.api_token_id)
    stream = StreamRange(caller.level, params.job_id, last_id, ctx.feed.position, time.monotonic() + seconds)
    lines = _stream_lines(ctx, subscription, stream)
    return _EventStreamResponse(ctx, subscription, lines, seconds + GRACE_SECONDS)


async def _stream_lines(ctx: AppContext, subscription: Subscription, stream: StreamRange) -> AsyncIterator[bytes]:
    """Yield missed events up to the start of the subscription, then those of the feed; each event once."""
    sent_id = stream.joined_at_id if stream.after is None else stream.after
    yield f": moorage\nretry: {RETRY_MS}\nid: {sent_id}\n\n".encode()
    if stream.after is not None and (reason := await _find_reset_reason(ctx, stream.after, stream.joined_at_id)):
        sent_id = stream.joined_at_id
        yield _format_block(sent_id, "reset", {"reason": reason})
    while sent_id < stream.joined_at_id:
        until = min(stream.joined_at_id, sent_id + events.MAX_ID_SPAN)
        read = partial(events.list_between, after=sent_id, until=until, job_id=stream.job_id, owner=subscription.owner)
        for row in await ctx.database.transaction(read):
            if (shown := visibility.filter_event(stream.level, row)) is not None:
                yield _format_block(shown["id"], shown["subject"], shown)
        sent_id = until
    while (seconds_left := stream.ends_at - time.monotonic()) > 0:
        event = await subscription.next(min(KEEP_ALIVE_SECONDS, seconds_left))
        if event is None and subscription.is_ended:
            break
        if event is None:
            sent_id = max(sent_id, ctx.feed.position)  # all events up to there were offered, and the buffer is empty
            yield f": nothing new\nid: {sent_id}\n\n".encode()
        elif event["id"] > sent_id:
            sent_id = event["id"]
            shown = visibility.filter_event(stream.level, event)
            if shown is not None and stream.job_id in (None, event["job_id"]):
                yield _format_block(shown["id"], shown["subject"], shown)


async def _find_reset_reason(ctx: AppContext, after: int, joined_at_id: int) -> str | None:
    oldest_id, last_id = await ctx.database.transaction(
        lambda conn: (events.get_oldest_id(conn), events.get_last_id(conn))
    )
    if after > last_id:
        return "unknown event id: the database was restored"
    if joined_at_id - after > MAX_RESUME_IDS:
        return "too many events since"
    if oldest_id is not None and after < oldest_id - 1:
        return "events since were removed"
    return None


def _format_block(event_id: int, name: str, fields: dict[str, Any]) -> bytes:
    data = json.dumps(fields, default=lambda value: value.isoformat() if hasattr(value, "isoformat") else str(value))
    return f"id: {event_id}\nevent: {name}\ndata: {data}\n\n".encode()


class _EventStreamResponse(StreamingResponse):
    """A stream that is unsubscribed in any case, and ends also if the client reads nothing."""

    def __init__(
        self, ctx: AppContext, subscription: Subscription, lines: AsyncIterator[bytes], seconds: float
    ) -> None:
        super().__init__(lines, headers=_HEADERS, media_type="text/event-stream")
        self._ctx, self._subscription, self._seconds = ctx, subscription, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass  # the client reads nothing: the server closes the connection
        finally:
            self._ctx.feed.unsubscribe(self._subscription)
