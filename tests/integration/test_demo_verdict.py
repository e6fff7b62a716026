"""The demo's webhook endpoint and stream client over real HTTP, and their checks, which must report every damage."""

import base64
import dataclasses
import http.server
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from db import events, jobs, registrations
from db.connection import Connection, fetch_all
from moorage import ids
from moorage.model import Registration
from simulation.demo import event_stream, webhook_listener
from simulation.demo.event_stream import StreamFollower
from simulation.demo.webhook_listener import JobEnd, WebhookListener
from tasks import notifications

ENDS = ("failed", "cancelled", "failed", "failed", "cancelled")


def end(conn: Connection, job_id: uuid.UUID, state: str) -> None:
    with conn.transaction():
        job = jobs.lock(conn, job_id)
        jobs.change_state(conn, job, state, actor="test", category="PROVIDER_FAILED")


@pytest.fixture
def ended(conn: Connection) -> list[uuid.UUID]:
    """Return ended jobs, the first of which was reopened and cancelled."""
    job_ids = [ids.uuid7() for _ in ENDS]
    for job_id, state in zip(job_ids, ENDS, strict=True):
        registration = Registration(provider="replicate", external_id=job_id.hex, owner="demo")
        row = {"job_id": job_id, "prediction_id": ids.uuid7(), "state": "running", "notify": True, "actor": "test"}
        registrations.queue_add(conn, registration, deadline_seconds=60, first_poll_seconds=60, **row)
        end(conn, job_id, state)
    end(conn, job_ids[0], "open")
    end(conn, job_ids[0], "cancelled")
    return job_ids


# --- webhooks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def listener(conn: Connection, ended: list[uuid.UUID]) -> Iterator[WebhookListener]:
    """Return a listener that received every end, one of them twice, in no order."""
    with WebhookListener() as listener:
        rows = fetch_all(conn, webhook_listener.ENDS)
        received = [JobEnd(f"w{row['sequence']}", row["type"], str(row["job_id"]), row["sequence"]) for row in rows]
        listener.received = [*reversed(received), received[0]]
        yield listener


def test_an_application_that_received_every_end_has_no_difference(conn: Connection, listener: WebhookListener) -> None:
    """Delivery is at least once and in any order; a finding for that would be a false alarm."""
    assert len(listener.received) == len(ENDS) + 2

    assert webhook_listener.check_notifications(conn, listener) == []


def lose_newest(listener: WebhookListener) -> None:
    newest = max(listener.received, key=lambda end: end.sequence)
    listener.received = [end for end in listener.received if end != newest]


def invent_end(listener: WebhookListener) -> None:
    listener.received.append(JobEnd("w0", "job.succeeded", listener.received[0].job_id, 0))


def change_types(listener: WebhookListener) -> None:
    listener.received = [dataclasses.replace(end, type="job.succeeded") for end in listener.received]


def change_webhook_id(listener: WebhookListener) -> None:
    listener.received.append(dataclasses.replace(listener.received[0], webhook_id="another"))


def forge(listener: WebhookListener) -> None:
    listener.statuses[401] += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_newest, "was not received"),
        (lose_newest, "its application last received job.failed"),
        (invent_end, "was received and is wrong"),
        (change_types, "was received and is wrong"),
        (change_webhook_id, "under two ids"),
        (forge, "had a wrong signature"),
    ],
)
def test_a_wrong_notification_is_reported(
    conn: Connection, listener: WebhookListener, damage: Callable[[WebhookListener], None], message: str
) -> None:
    """A check that cannot fail shows nothing."""
    damage(listener)

    assert any(message in line for line in webhook_listener.check_notifications(conn, listener))


def test_a_listener_accepts_signed_webhooks_and_is_unavailable_once_in_ten() -> None:
    """A webhook that gets a 503 is sent again, so it must not count as received."""
    session = requests.Session()
    session.trust_env = False

    with WebhookListener() as listener:
        settings = listener.environment()
        key = base64.b64decode(settings["MOORAGE_NOTIFY_SECRET"].removeprefix("whsec_"))
        statuses = []
        for number in range(12):
            data = {"job_id": str(number), "sequence": number}
            body = json.dumps({"type": "job.failed", "data": data}).encode()
            signed_by = key if number != 5 else key[::-1]
            headers = notifications.build_headers(uuid.UUID(int=number), body, int(time.time()), (signed_by,))
            statuses.append(session.post(settings["MOORAGE_NOTIFY_URL"], body, headers=headers, timeout=5).status_code)

    assert statuses == [503, *[204] * 4, 401, *[204] * 4, 503, 204]
    assert [end.sequence for end in listener.received] == [1, 2, 3, 4, 6, 7, 8, 9, 11]


# --- the stream ---------------------------------------------------------------------------------------------------


def build_follower(conn: Connection) -> StreamFollower:
    """Return a follower that disconnected once and received every event."""
    follower = StreamFollower("http://127.0.0.1:1", "token")
    newest = event_stream.newest_event_id(conn)
    follower.events = [json.loads(json.dumps(row, default=str)) for row in events.list_between(conn, 0, newest)]
    follower.first_id, follower.last_id, follower.connections = 0, newest, [None, 3]
    return follower


def test_a_stream_with_every_event_once_has_no_difference(conn: Connection, ended: list[uuid.UUID]) -> None:
    """Events after the one that was awaited are not checked."""
    follower, newest = build_follower(conn), event_stream.newest_event_id(conn)
    follower.events.append({**follower.events[-1], "id": newest + 1})

    assert len(follower.events) > 2 * len(ended)
    assert event_stream.check_stream(conn, follower, newest) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda follower: follower.events.pop(), "was not streamed"),
        (lambda follower: follower.events[-2].update(to_state="open"), "in the stream open"),
        (lambda follower: follower.events.append(follower.events[3]), "was streamed 2 times"),
        (lambda follower: follower.events.append({**follower.events[3], "id": 0}), "does not exist"),
        (lambda follower: follower.connections.pop(), "not resumed"),
        (lambda follower: setattr(follower, "resets", 1), "1 resets"),
    ],
    ids=["lost", "an old state", "doubled", "invented", "never disconnected", "reset"],
)
def test_a_wrong_stream_is_reported(
    conn: Connection,
    ended: list[uuid.UUID],
    damage: Callable[[StreamFollower], object],
    message: str,
) -> None:
    """Each of these is a guarantee of the stream."""
    follower, newest = build_follower(conn), event_stream.newest_event_id(conn)

    damage(follower)

    assert any(message in line for line in event_stream.check_stream(conn, follower, newest))


@contextmanager
def serve_events(count: int) -> Iterator[tuple[str, list[str | None]]]:
    """Serve the events after Last-Event-ID up to a number, then nothing; yield the URL and these ids."""
    requested: list[str | None] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.headers["Last-Event-ID"])
            after = int(requested[-1] or 0)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f": hello\nid: {after}\n\n".encode())
            for number in range(after + 1, count + 1):
                self.wfile.write(f'id: {number}\nevent: job\ndata: {{"id": {number}}}\n\n'.encode())
            over.wait(30)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requested
        finally:
            over.set()
            server.shutdown()
            thread.join()


def test_a_follower_disconnects_once_and_resumes_after_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Last-Event-ID is for events during the disconnection."""
    monkeypatch.setattr(event_stream, "RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr(event_stream, "DISCONNECT_AFTER", 5)

    with serve_events(8) as (url, requested), StreamFollower(url, "token") as follower:
        follower.await_event(8, 10.0)

    assert requested == [None, "5"] == [None, *map(str, follower.connections[1:])]
    assert [event["id"] for event in follower.events] == list(range(1, 9))
    assert follower.first_id == 0
