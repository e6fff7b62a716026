"""The stream of events, with granian and PostgreSQL."""

import contextlib
import http.client
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import pytest

from db.connection import Connection, connect
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp
from web.api import events as stream_module
from web.services import event_feed

ADD_EVENT = """
INSERT INTO events (subject, subject_id, job_id, to_state, actor)
VALUES ('job', %(job_id)s, %(job_id)s, %(to_state)s, 'test')
"""


@pytest.fixture
def other(url: str) -> Iterator[Connection]:
    with contextlib.closing(connect(url)) as made:
        yield made


class Listener:
    """A browser's side of a stream: reads lines, and remembers the last id."""

    def __init__(
        self, front: wp.Front, query: str = "", last_id: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        resumed = {} if last_id is None else {"last-event-id": str(last_id)}
        self.sent = (front.port, f"/v1/events{query}", {**(headers or wp.BEARER), **resumed})
        rp.until(self.is_let_in)
        self.last_id = self.comments = 0
        assert self.block() is None  # the stream's own beginning
        self.began_at, self.comments = self.last_id, 0

    def is_let_in(self) -> bool:
        """Open the stream; retried briefly while streams of an earlier test are still closing."""
        port, path, headers = self.sent
        self.conn = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.conn.request("GET", path, headers=headers)
        self.reply = self.conn.getresponse()
        assert self.reply.status in (200, 503)
        if self.reply.status == 503:
            self.reply.close()
            self.conn.close()
        return self.reply.status == 200

    def block(self) -> dict[str, Any] | None:
        """Return the data of the next block, None if it has none."""
        data = None
        while line := self.reply.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            self.comments += not name
            if name == "id":
                self.last_id = int(value)
            if name == "data":
                data = json.loads(value)
        return data

    def next(self) -> dict[str, Any]:
        end = time.monotonic() + 60
        while (data := self.block()) is None:
            assert not self.reply.isclosed(), "the stream ended"
            assert time.monotonic() < end, "no event came"  # only comments
        return data


@contextlib.contextmanager
def listening(
    front: wp.Front, query: str = "", last_id: int | None = None, headers: dict[str, str] | None = None
) -> Iterator[Listener]:
    listener = Listener(front, query, last_id, headers)
    try:
        yield listener
    finally:
        listener.conn.close()
        listener.reply.close()


def write(conn: Connection, job_id: UUID, to_state: str) -> None:
    """Write a transition of a job as the product does: first its row, then the event."""
    conn.execute("UPDATE jobs SET reason = %s WHERE id = %s", [to_state, job_id])
    conn.execute(ADD_EVENT, {"job_id": job_id, "to_state": to_state})


def job(front: wp.Front, name: str, owner: str = "ada") -> UUID:
    """Register a job, and return its id when a new stream starts after its first events."""
    job_id = UUID(front.register(external_id=f"stream_{name}", owner=owner).fields["job_id"])
    first = front.get(f"/v1/jobs/{job_id}/events").fields["events"]
    rp.until(lambda: beginning(front) >= first[-1]["id"])
    return job_id


def beginning(front: wp.Front) -> int:
    with listening(front) as stream:
        return stream.began_at


def test_events_arrive_soon(front: wp.Front) -> None:
    """Users reload a page that shows a file late."""
    with listening(front) as stream:
        made = front.register(external_id="stream_live", owner="live").fields["job_id"]

        told = [stream.next(), stream.next()]

        assert stream.comments == 0  # one comes after 15 seconds without an event
    assert stream.reply.headers["content-type"].startswith("text/event-stream")
    assert stream.reply.headers["cache-control"] == "no-store"
    assert {event["job_id"] for event in told} == {made}
    assert {event["owner"] for event in told} == {"live"}
    assert sorted(event["subject"] for event in told) == ["job", "prediction"]


def test_an_event_that_commits_late_is_not_lost(url: str, front: wp.Front, mine: Connection, other: Connection) -> None:
    """Ids are drawn before COMMIT: a stream that resumed from the highest id seen would skip the lower one."""
    slow, quick = job(front, "slow", "late"), job(front, "quick", "late")
    with listening(front, "?owner=late") as stream:
        # The quick transaction is the older one but draws the higher id: an order by transaction ids would lose it.
        other.execute("BEGIN")
        other.execute("UPDATE jobs SET reason = 'older' WHERE id = %s", [quick])
        mine.execute("BEGIN")
        write(mine, slow, "drawn_first")
        write(other, quick, "drawn_second")
        other.execute("COMMIT")
        seen = asked_at(url)
        rp.until(lambda: asked_at(url) > seen)
        seen = asked_at(url)
        rp.until(lambda: asked_at(url) > seen)
        mine.execute("COMMIT")

        told = [stream.next()["to_state"], stream.next()["to_state"]]

    assert told == ["drawn_first", "drawn_second"]


def asked_at(url: str) -> datetime:
    """Return when the feed last polled; it polls once a second while there are subscriptions."""
    asked = "SELECT max(query_start) AS at FROM pg_stat_activity WHERE application_name = 'moorage web'"
    return cast(datetime, rp.rows(url, asked)[0]["at"])


def test_commits_in_any_order_lose_and_duplicate_nothing(url: str, front: wp.Front) -> None:
    """Each event once, those of a job in the order of the transitions."""
    made = [job(front, f"race_{n}", "race") for n in range(8)]
    with listening(front, "?owner=race") as stream:
        with ThreadPoolExecutor(len(made)) as pool:
            list(pool.map(lambda job_id: race(url, job_id), made))
        settled = rows_of(url, made)
        told = [stream.next() for _ in settled]

    assert sorted(event["id"] for event in told) == [row["id"] for row in settled]
    assert [event["id"] for event in told] == sorted(event["id"] for event in told)


def race(url: str, job_id: UUID) -> None:
    """Write twenty events of a job, each transaction open for a moment after drawing its id; some roll back."""
    draw = random.Random(job_id.int)
    with contextlib.closing(connect(url)) as conn:
        for n in range(20):
            conn.execute("BEGIN")
            write(conn, job_id, f"edge_{n}")
            conn.execute("SELECT pg_sleep(%s)", [draw.random() * 0.15])
            conn.execute("ROLLBACK" if draw.random() < 0.1 else "COMMIT")


def rows_of(url: str, jobs: list[UUID]) -> list[dict[str, Any]]:
    named = ", ".join(f"'{job_id}'" for job_id in jobs)
    return rp.rows(url, f"SELECT id FROM events WHERE job_id IN ({named}) AND actor = 'test' ORDER BY id")


def test_a_stream_resumes_after_the_last_event(front: wp.Front, mine: Connection) -> None:
    """Events between two connections are sent first, each once and in order."""
    job_id = job(front, "resumed", "resumer")
    with listening(front, "?owner=resumer") as stream:
        write(mine, job_id, "first")
        first = stream.next()
    for n in range(3):
        write(mine, job_id, f"missed_{n}")
    settle(front)

    with listening(front, "?owner=resumer", last_id=first["id"]) as again:
        missed = [again.next()["to_state"] for _ in range(3)]
        write(mine, job_id, "live")
        live = again.next()

    assert (first["to_state"], missed, live["to_state"]) == ("first", ["missed_0", "missed_1", "missed_2"], "live")


def settle(front: wp.Front) -> None:
    """Open and close a stream: the feed starts again."""
    with listening(front):
        pass


def test_a_filter_limits_a_stream_to_a_job_or_an_owner(front: wp.Front, mine: Connection) -> None:
    """One client must not receive events of another's jobs."""
    one, two = job(front, "one", "first owner"), job(front, "two", "second owner")
    with listening(front, f"?job_id={one}") as by_job, listening(front, "?owner=second%20owner") as by_owner:
        write(mine, two, "of_two")
        write(mine, one, "of_one")

        assert by_job.next()["to_state"] == "of_one"
        assert by_owner.next()["to_state"] == "of_two"


def test_all_streams_share_one_query_a_second(url: str, front: wp.Front, mine: Connection) -> None:
    """A hundred open pages must not cause a hundred queries a second."""
    job_id = job(front, "shared")
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(listening(front)) for _ in range(20)]
        write(mine, job_id, "to_all")
        told = [stream.next()["to_state"] for stream in streams]
        backends = rp.rows(url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'moorage web'")

    assert told == ["to_all"] * 20
    assert len(backends) <= 8


def read_position(front: wp.Front) -> int:
    with listening(front, "?owner=reset") as stream:
        return stream.began_at


@pytest.mark.parametrize("far", ["ahead", "back"])
def test_a_stream_that_cannot_resume_sends_a_reset(url: str, front: wp.Front, mine: Connection, far: str) -> None:
    """A page that assumes it missed nothing shows deleted renders, and lacks new ones."""
    job_id = job(front, f"reset_{far}", "reset")
    drawn = rp.rows(url, "SELECT last_value AS id FROM events_id_seq")[0]["id"]
    if far == "back":
        mine.execute("SELECT setval('events_id_seq', %s)", [drawn + stream_module.MAX_RESUME_IDS + 1])
        rp.until(lambda: read_position(front) > drawn)  # polling for a stream of an earlier test may be a second behind

    with listening(front, "?owner=reset", last_id=drawn + 1_000_000 if far == "ahead" else drawn) as stream:
        told = stream.next()
        write(mine, job_id, "after_reset")
        live = stream.next()

    assert set(told) == {"reason"}
    assert live["to_state"] == "after_reset"


def test_many_missed_events_are_read_page_by_page(front: wp.Front, mine: Connection) -> None:
    """A laptop that was asleep for an hour gets the events it missed, of its own jobs only."""
    job_id, noise = job(front, "lunch", "lunch"), job(front, "noise", "noise")
    with listening(front) as stream:
        began = stream.began_at
    mine.execute(
        "INSERT INTO events (subject, subject_id, job_id, to_state, actor)"
        " SELECT 'job', %(n)s, CASE WHEN g %% 300 = 0 THEN %(j)s ELSE %(n)s END, g::text, 'test'"
        " FROM generate_series(1, 1800) g",
        {"j": job_id, "n": noise},
    )

    with listening(front, "?owner=lunch", last_id=began) as stream:
        told = [stream.next()["to_state"] for _ in range(6)]

    assert told == ["300", "600", "900", "1200", "1500", "1800"]


def test_an_owner_tokens_stream_is_limited_to_its_owner_and_lifetime(front: wp.Front, mine: Connection) -> None:
    """The stream must not outlive its token, nor contain events of others."""
    own, other = job(front, "own", "own stream"), job(front, "not_own", "somebody else")
    body = json.dumps({"owner": "own stream", "seconds": 8}).encode()
    made = front.ask("POST", "/v1/owner-tokens", body, {**wp.BEARER, "content-type": "application/json"})
    token = {"authorization": f"Bearer {made.fields['token']}"}

    with listening(front, headers=token) as stream:
        write(mine, other, "of_other")
        write(mine, own, "of_own")
        told = stream.next()
        rest = stream.reply.read()
    foreign = front.ask("GET", "/v1/events?owner=somebody%20else", headers=token)

    assert (told["to_state"], told["owner"]) == ("of_own", "own stream")
    assert b"of_other" not in rest
    assert foreign.status in (401, 403)


@pytest.mark.parametrize("last_id", ["x", "-1", "1.5", "9" * 20])
def test_an_invalid_last_event_id_is_rejected(front: wp.Front, last_id: str) -> None:
    """Starting elsewhere would lose events silently."""
    refused = front.ask("GET", "/v1/events", headers={**wp.BEARER, "last-event-id": last_id})

    assert (refused.status, refused.fields["errors"][0]["field"]) == (422, "Last-Event-ID")


def test_the_number_of_streams_is_limited_and_slots_are_released(url: str) -> None:
    """Each has a buffer; disconnected streams must free their slot."""
    with wp.running(url, MOORAGE_MAX_STREAMS="3") as front:
        with contextlib.ExitStack() as stack:
            for owner in ("one", "two", "three"):
                stack.enter_context(listening(front, f"?owner={owner}"))
            refused = front.get("/v1/events?owner=four")

        assert refused.status == 503
        rp.until(lambda: is_taken(front))


def test_the_streams_of_a_revoked_token_end(front: wp.Front) -> None:
    """A stolen token must not be read with until it expires."""
    body = json.dumps({"owner": "robbed"}).encode()
    asked = {**wp.BEARER, "content-type": "application/json"}
    stolen, other = (front.ask("POST", "/v1/owner-tokens", body, asked).fields for _ in range(2))
    bearers = [{"authorization": f"Bearer {made['token']}"} for made in (stolen, other)]
    with listening(front, headers=bearers[0]) as one, listening(front, headers=bearers[1]) as two:
        assert front.ask("DELETE", f"/v1/owner-tokens/{stolen['token_id']}", None, wp.BEARER).status == 204
        rest = one.reply.read()

        assert front.ask("DELETE", "/v1/owner-tokens?owner=robbed", None, wp.BEARER).status == 204
        two.reply.read()

    assert b"event:" not in rest
    assert [front.ask("GET", "/v1/jobs", None, bearer).status for bearer in bearers] == [401, 401]
    again = front.ask("POST", "/v1/owner-tokens", body, asked).fields["token"]
    assert front.ask("GET", "/v1/jobs", None, {"authorization": f"Bearer {again}"}).status == 200


def test_the_streams_of_a_revoked_api_token_end(front: wp.Front) -> None:
    """For five minutes they went on, with the events of all owners."""
    asked = {**wp.BEARER, "content-type": "application/json"}
    made = front.ask("POST", "/v1/tokens", b'{"name": "old", "role": "application"}', asked).fields
    with listening(front, headers={"authorization": f"Bearer {made['token']}"}) as stream:
        assert front.ask("DELETE", f"/v1/tokens/{made['token_id']}", None, wp.BEARER).status == 204
        rest = stream.reply.read()

    assert b"event:" not in rest


def is_taken(front: wp.Front) -> bool:
    conn = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    try:
        conn.request("GET", "/v1/events", headers=wp.BEARER)
        with conn.getresponse() as reply:
            return reply.status == 200
    finally:
        conn.close()


def test_the_streams_of_one_owner_are_limited(front: wp.Front) -> None:
    """A page that reloads in a loop must not block the streams of others."""
    with contextlib.ExitStack() as stack:
        for _ in range(event_feed.MAX_STREAMS_PER_OWNER):
            stack.enter_context(listening(front, "?owner=greedy"))
        refused = front.get("/v1/events?owner=greedy")
        stack.enter_context(listening(front, "?owner=modest"))

    assert (refused.status, refused.headers["retry-after"]) == (503, "1")


def test_open_streams_end_with_the_process(url: str) -> None:
    """A stream never ends by itself: a process that waited for it would have to be killed."""
    with wp.running(url) as front, listening(front) as stream:
        began = time.monotonic()
        status = front.stop()
        took = time.monotonic() - began
        rest, log = stream.reply.read(), front.log()

    assert (status, rest) == (0, b"")
    assert took < 25  # granian kills what has not ended after 40
    assert "Traceback" not in log
