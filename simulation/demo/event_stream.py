"""Follows the event stream like a page in a browser, and compares it with PostgreSQL's events and jobs."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, Self

import requests

from db.connection import Connection, fetch_all
from simulation.api_client import SimulationFailed

DISCONNECT_AFTER: Final = 150  # events; then it disconnects once, and resumes after the last of them
RECONNECT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 40.0  # the stream sends a comment at least every 15 s
JOIN_SECONDS: Final = 10.0


class StreamFollower:
    """Follows `GET /v1/events` until it is closed."""

    def __init__(self, url: str, token: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.connections: list[int | None] = []  # the Last-Event-ID of each
        self.resets = 0
        self.first_id: int | None = None  # after which the stream began
        self.last_id: int | None = None
        self._url, self._headers = f"{url}/v1/events", {"Authorization": f"Bearer {token}"}
        self._is_closed, self._has_joined = threading.Event(), threading.Event()

    def await_event(self, event_id: int, seconds: float) -> None:
        """Wait until an event was received, or until the timeout."""
        until = time.monotonic() + seconds
        while (self.last_id or 0) < event_id and time.monotonic() < until:
            time.sleep(0.05)

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        if not self._has_joined.wait(JOIN_SECONDS):
            raise SimulationFailed(f"the event stream did not start within {JOIN_SECONDS:.0f} s")
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()  # nothing is added to `events` any more

    def _run(self) -> None:
        while not self._is_closed.is_set():
            with contextlib.suppress(requests.RequestException):  # a stream may end at any time
                self._follow()
            self._is_closed.wait(RECONNECT_SECONDS)

    def _follow(self) -> None:
        last = {} if self.last_id is None else {"Last-Event-ID": str(self.last_id)}
        with requests.get(
            self._url, headers={**self._headers, **last}, stream=True, timeout=SILENCE_SECONDS
        ) as response:
            response.raise_for_status()
            self.connections.append(self.last_id)
            for block in parse_blocks(response.iter_lines(chunk_size=1)):
                if self._is_closed.is_set() or (len(self.connections) == 1 and len(self.events) >= DISCONNECT_AFTER):
                    return
                self._add(block)

    def _add(self, block: dict[str, str]) -> None:
        if block.get("event") == "reset":
            self.resets += 1
        elif "data" in block:
            self.events.append(json.loads(block["data"]))
        if "id" in block:
            self.last_id = int(block["id"])
            self.first_id = self.last_id if self.first_id is None else self.first_id
            self._has_joined.set()


def parse_blocks(lines: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """Yield the fields of each block of server-sent events, without comments and without an incomplete block."""
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

NEWEST = "SELECT max(id) AS id FROM events"

STATES = "SELECT id, state FROM jobs"


def newest_event_id(conn: Connection) -> int:
    return int(fetch_all(conn, NEWEST)[0]["id"])


def check_stream(conn: Connection, follower: StreamFollower, until: int) -> list[str]:
    """Return the differences between a closed stream and PostgreSQL, up to the id of an event that was received."""
    streamed = [event for event in follower.events if event["id"] <= until]
    counts = Counter(event["id"] for event in streamed)
    recorded = {row["id"] for row in fetch_all(conn, EVENTS, {"after": follower.first_id, "until": until})}
    differences = [f"event {id_} was not streamed" for id_ in sorted(recorded - counts.keys())]
    differences += [f"event {id_} was streamed and does not exist" for id_ in sorted(counts.keys() - recorded)]
    differences += [f"event {id_} was streamed {count} times" for id_, count in counts.items() if count > 1]
    states = {str(row["id"]): row["state"] for row in fetch_all(conn, STATES)}
    streamed_states = {event["job_id"]: event["to_state"] for event in streamed if event["subject"] == "job"}
    for job_id in sorted(states.keys() | streamed_states.keys()):
        if states.get(job_id) != streamed_states.get(job_id):
            there, in_stream = states.get(job_id), streamed_states.get(job_id)
            differences.append(f"job {job_id} is {there}, in the stream {in_stream}")
    if follower.resets or len(follower.connections) < 2:
        differences.append(f"the stream was not resumed: {follower.resets} resets")
    return differences
