"""The demo's application over real HTTP, and its verdict on what it heard: each damage done by hand is named."""

import base64
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

from db import events, jobs
from db.connection import Connection, fetch_all
from moorage import ids
from moorage.model import Registration
from simulation.demo import event_stream, webhook_listener
from simulation.demo.event_stream import Follower
from simulation.demo.webhook_listener import Listener, Told
from tasks import notifications

ENDS = ("failed", "cancelled", "failed", "failed", "cancelled")


def end(conn: Connection, job_id: uuid.UUID, state: str) -> None:
    with conn.transaction():
        job = jobs.lock(conn, job_id)
        jobs.change_state(conn, job, state, actor="test", category="PROVIDER_FAILED")


@pytest.fixture
def ended(conn: Connection) -> list[uuid.UUID]:
    """Give ended jobs, the first of which was opened again and cancelled."""
    made = [ids.uuid7() for _ in ENDS]
    for job_id, state in zip(made, ENDS, strict=True):
        asked = Registration("replicate", job_id.hex, "demo")
        jobs.add_registered(conn, job_id, asked, deadline_seconds=60, notify=True, actor="test")
        end(conn, job_id, state)
    end(conn, made[0], "open")
    end(conn, made[0], "cancelled")
    return made


# --- webhooks out -------------------------------------------------------------------------------------------------


@pytest.fixture
def listener(conn: Connection, ended: list[uuid.UUID]) -> Iterator[Listener]:
    """Give a listener that was told of everything, one end twice, in no order."""
    with Listener() as made:
        rows = fetch_all(conn, webhook_listener.ENDS)
        made.told = [Told(f"w{row['sequence']}", row["type"], str(row["job_id"]), row["sequence"]) for row in rows]
        made.told = [*reversed(made.told), made.told[0]]
        yield made


def test_an_application_that_heard_every_end_differs_in_nothing(conn: Connection, listener: Listener) -> None:
    """At least once and in any order is what was promised; a finding for it would be a false alarm."""
    assert len(listener.told) == len(ENDS) + 2

    assert webhook_listener.differences(conn, listener) == []


def _silent(listener: Listener) -> None:
    newest = max(listener.told, key=lambda one: one.sequence)
    listener.told = [one for one in listener.told if one != newest]


def _early(listener: Listener) -> None:
    listener.told.append(Told("w0", "job.succeeded", listener.told[0].job_id, 0))


def _wrong(listener: Listener) -> None:
    listener.told = [Told(one.webhook_id, "job.succeeded", one.job_id, one.sequence) for one in listener.told]


def _renamed(listener: Listener) -> None:
    one = listener.told[0]
    listener.told.append(Told("again", one.type, one.job_id, one.sequence))


def _forged(listener: Listener) -> None:
    listener.answers[401] += 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_silent, "was not told"),
        (_silent, "its application last heard job.failed"),
        (_early, "was told and is not so"),
        (_wrong, "was told and is not so"),
        (_renamed, "under two ids"),
        (_forged, "wrongly signed"),
    ],
)
def test_what_an_application_should_have_heard_otherwise_is_named(
    conn: Connection, listener: Listener, damage: Callable[[Listener], None], says: str
) -> None:
    """A verdict that cannot fail shows nothing."""
    damage(listener)

    assert any(says in line for line in webhook_listener.differences(conn, listener))


def test_a_listener_takes_what_is_signed_and_is_away_once_in_ten() -> None:
    """What it answers 503 must come again, so it must not count as heard."""
    session = requests.Session()
    session.trust_env = False

    with Listener() as listener:
        settings = listener.environment()
        key = base64.b64decode(settings["MOORAGE_NOTIFY_SECRET"].removeprefix("whsec_"))
        answers = []
        for number in range(12):
            data = {"job_id": str(number), "sequence": number}
            body = json.dumps({"type": "job.failed", "data": data}).encode()
            signed_by = key if number != 5 else key[::-1]
            headers = notifications.build_headers(uuid.UUID(int=number), body, int(time.time()), (signed_by,))
            answers.append(session.post(settings["MOORAGE_NOTIFY_URL"], body, headers=headers, timeout=5).status_code)

    assert answers == [503, *[204] * 4, 401, *[204] * 4, 503, 204]
    assert [one.sequence for one in listener.told] == [1, 2, 3, 4, 6, 7, 8, 9, 11]


# --- the stream ---------------------------------------------------------------------------------------------------


def followed(conn: Connection) -> Follower:
    """Return a follower that left once and was told of everything."""
    made = Follower("http://127.0.0.1:1", "token")
    newest = event_stream.last(conn)
    made.events = [json.loads(json.dumps(row, default=str)) for row in events.list_between(conn, 0, newest)]
    made.began, made.last_id, made.connections = 0, newest, [None, 3]
    return made


def test_a_stream_that_told_every_event_once_differs_in_nothing(conn: Connection, ended: list[uuid.UUID]) -> None:
    """What came after the event that was waited for is nobody's loss."""
    follower, newest = followed(conn), event_stream.last(conn)
    follower.events.append({**follower.events[-1], "id": newest + 1})

    assert len(follower.events) > 2 * len(ended)
    assert event_stream.differences(conn, follower, newest) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda follower: follower.events.pop(), "was not streamed"),
        (lambda follower: follower.events[-2].update(to_state="open"), "by the stream it is open"),
        (lambda follower: follower.events.append(follower.events[3]), "was streamed 2 times"),
        (lambda follower: follower.events.append({**follower.events[3], "id": 0}), "is not there"),
        (lambda follower: follower.connections.pop(), "not taken up again"),
        (lambda follower: setattr(follower, "resets", 1), "1 resets"),
    ],
    ids=["lost", "an old state", "doubled", "invented", "never left", "reset"],
)
def test_what_a_stream_should_have_told_otherwise_is_named(
    conn: Connection,
    ended: list[uuid.UUID],
    damage: Callable[[Follower], object],
    says: str,
) -> None:
    """Each of these is a promise of the stream."""
    follower, newest = followed(conn), event_stream.last(conn)

    damage(follower)

    assert any(says in line for line in event_stream.differences(conn, follower, newest))


@contextmanager
def streaming(events: int) -> Iterator[tuple[str, list[str | None]]]:
    """Serve so many events, then nothing more, from the one behind Last-Event-ID; gives the address and these ids."""
    asked: list[str | None] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Last-Event-ID"])
            after = int(asked[-1] or 0)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f": hello\nid: {after}\n\n".encode())
            for number in range(after + 1, events + 1):
                self.wfile.write(f'id: {number}\nevent: job\ndata: {{"id": {number}}}\n\n'.encode())
            over.wait(30)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            over.set()
            server.shutdown()
            thread.join()


def test_a_follower_leaves_once_and_comes_back_behind_the_last_event_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened while it was away is what Last-Event-ID is for."""
    monkeypatch.setattr(event_stream, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(event_stream, "LEAVE_AFTER", 5)

    with streaming(events=8) as (url, asked), Follower(url, "token") as follower:
        follower.await_event(8, 10.0)

    assert asked == [None, "5"] == [None, *map(str, follower.connections[1:])]
    assert [event["id"] for event in follower.events] == list(range(1, 9))
    assert follower.began == 0
