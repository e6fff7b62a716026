"""The stream of events followed in the demo, as a page does it, and compared with PostgreSQL's events and jobs."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from db.connection import Connection, fetch_all
from simulation.demo.registered import DemoFailed

LEAVE_AFTER: Final = 150  # events; then it goes away in the middle of the work, and comes back behind the last of them
AWAY_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 40.0  # the stream says at least every 15 s that it lives
JOIN_SECONDS: Final = 10.0


class Follower:
    """
    Follows `GET /v1/events` from its start to its end.

    `events` is what was told, in its order; `began` the id behind which it begins, `last_id` the newest it knows of.
    """

    def __init__(self, url: str, token: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.connections: list[int | None] = []  # of each the Last-Event-ID it was asked with
        self.resets = 0
        self.began: int | None = None
        self.last_id: int | None = None
        self._address = urlsplit(url)
        self._token = token
        self._socket: socket.socket | None = None
        self._is_over = threading.Event()
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def await_event(self, event_id: int, seconds: float) -> None:
        """Wait until an event was told, or the time is over."""
        until = time.monotonic() + seconds
        while (self.last_id or 0) < event_id and time.monotonic() < until:
            time.sleep(0.05)

    def close(self) -> None:
        """Leave the stream; nothing is added to `events` afterwards."""
        self._is_over.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the connection has ended already
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._joined.wait(JOIN_SECONDS):
            self.close()
            raise DemoFailed(f"the stream of events did not begin within {JOIN_SECONDS:.0f} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._is_over.is_set():
            connection = http.client.HTTPConnection(
                self._address.hostname or "", self._address.port, timeout=SILENCE_SECONDS
            )
            try:
                self._follow(connection)
            except (OSError, http.client.HTTPException):
                pass  # a stream may end at any time: whoever follows it comes again, as below
            finally:
                connection.close()
            self._is_over.wait(AWAY_SECONDS)

    def _follow(self, connection: http.client.HTTPConnection) -> None:
        connection.connect()
        self._socket = connection.sock
        if self._is_over.is_set():
            return
        last = {} if self.last_id is None else {"Last-Event-ID": str(self.last_id)}
        connection.request("GET", "/v1/events", headers={"Authorization": f"Bearer {self._token}", **last})
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            return
        self.connections.append(self.last_id)
        for block in blocks(answer):
            self._take(block)
            if len(self.connections) == 1 and len(self.events) >= LEAVE_AFTER:
                return

    def _take(self, block: dict[str, str]) -> None:
        if block.get("event") == "reset":
            self.resets += 1
        elif "data" in block:
            self.events.append(json.loads(block["data"]))
        if "id" in block:
            self.last_id = int(block["id"])
            self.began = self.last_id if self.began is None else self.began
            self._joined.set()


def blocks(lines: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """Yield the fields of each block of server-sent events; comments and a block that was cut off are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        text = line.decode().rstrip("\r\n")
        if not text and fields:
            yield fields
            fields = {}
        name, _, value = text.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")


EVENTS = "SELECT id FROM events WHERE id > %(after)s AND id <= %(until)s"

LAST = "SELECT max(id) AS id FROM events"

STATES = "SELECT id, state FROM jobs"


def last(conn: Connection) -> int:
    """Return the newest event's id."""
    return int(fetch_all(conn, LAST)[0]["id"])


def differences(conn: Connection, follower: Follower, until: int) -> list[str]:
    """Return where a stream that was left differs from PostgreSQL, up to an event that was awaited, a line each."""
    told = [event for event in follower.events if event["id"] <= until]
    times = Counter(event["id"] for event in told)
    there = {row["id"] for row in fetch_all(conn, EVENTS, {"after": follower.began, "until": until})}
    found = [f"event {one} was not streamed" for one in sorted(there - times.keys())]
    found += [f"event {one} was streamed and is not there" for one in sorted(times.keys() - there)]
    found += [f"event {one} was streamed {count} times" for one, count in times.items() if count > 1]
    found += _states(conn, {event["job_id"]: event["to_state"] for event in told if event["subject"] == "job"})
    if follower.resets or len(follower.connections) < 2:
        found.append(f"the stream was not taken up again: {follower.resets} resets")
    return found


def _states(conn: Connection, streamed: dict[str, str]) -> list[str]:
    there = {str(row["id"]): row["state"] for row in fetch_all(conn, STATES)}
    return [
        f"job {job_id} is {there.get(job_id)}, by the stream it is {streamed.get(job_id)}"
        for job_id in sorted(there.keys() | streamed.keys())
        if there.get(job_id) != streamed.get(job_id)
    ]
