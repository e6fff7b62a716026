"""The application that is told in the demo: it takes the webhooks that moorage sends, and trusts none unverified."""

import base64
import hmac
import http.server
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from db.connection import Connection, fetch_all

AWAY_EVERY: Final = 10  # of its requests it answers one so with 503, as an application does that is being deployed
TOLERANCE_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Told:
    """One end of a job, as it was told."""

    webhook_id: str
    type: str
    job_id: str
    sequence: int


class Listener:
    """An application on a free port of the loopback interface. `told` is what it took, doubled ones included."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.answers: Counter[int] = Counter()
        self._key = secrets.token_bytes(24)
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def environment(self) -> dict[str, str]:
        """Return the settings with which moorage tells it."""
        return {
            "MOORAGE_NOTIFY_URL": f"http://127.0.0.1:{self._server.server_port}/hooks",
            "MOORAGE_NOTIFY_SECRET": "whsec_" + base64.b64encode(self._key).decode(),
        }

    def take(self, headers: Mapping[str, str], body: bytes) -> int:
        """Take one request, its headers by lower-case name; returns the status of its answer."""
        is_ours = is_signed(self._key, headers, body, time.time())
        with self._lock:
            status = 401 if not is_ours else 503 if self.answers.total() % AWAY_EVERY == 0 else 204
            self.answers[status] += 1
            if status == 204:
                event = json.loads(body)
                data = event["data"]
                self.told.append(Told(headers["webhook-id"], event["type"], data["job_id"], data["sequence"]))
        return status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_signed(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Return whether a request is signed as Standard Webhooks 1.0 and not old; `now`: seconds since 1970."""
    webhook_id, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (at.isascii() and at.isdigit() and abs(now - int(at)) <= TOLERANCE_SECONDS):
        return False
    digest = hmac.digest(key, f"{webhook_id}.{at}.".encode() + body, "sha256")
    wanted = b"v1," + base64.b64encode(digest)
    offered = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(wanted, one) for one in offered)


# Each end of each job, those of jobs that were opened again included; the event's id is the sequence of its webhook.
ENDS = """
SELECT id AS sequence, subject_id AS job_id, 'job.' || to_state AS type
  FROM events
 WHERE subject = 'job' AND to_state IN ('succeeded', 'partial', 'failed', 'cancelled')
"""

STATES = "SELECT id, state FROM jobs WHERE settled_at IS NOT NULL"


def differences(conn: Connection, listener: Listener) -> list[str]:
    """Return where the application knows other ends than PostgreSQL, a line each."""
    ended = {(row["sequence"], str(row["job_id"]), row["type"]) for row in fetch_all(conn, ENDS)}
    told = {(one.sequence, one.job_id, one.type) for one in listener.told}
    newest = {job_id: told_type for _, job_id, told_type in sorted(told)}
    found = [f"{told_type} of {job_id} was not told" for _, job_id, told_type in sorted(ended - told)]
    found += [f"{told_type} of {job_id} was told and is not so" for _, job_id, told_type in sorted(told - ended)]
    for row in fetch_all(conn, STATES):
        heard = newest.get(str(row["id"]))
        if heard != f"job.{row['state']}":
            found.append(f"job {row['id']} is {row['state']}, its application last heard {heard}")
    if len({one.webhook_id for one in listener.told}) != len(told):
        found.append("an end was told under two ids")
    return found + ([f"{listener.answers[401]} webhooks out were wrongly signed"] if listener.answers[401] else [])


def _handler(listener: Listener) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answer as the listener says."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(listener.take(headers, body))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Stay quiet."""

    return Handler
