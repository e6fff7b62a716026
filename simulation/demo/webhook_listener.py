"""The application's endpoint for moorage's webhooks: verifies signatures and records the ends of jobs."""

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
from typing import Final, Self

from db.connection import Connection, fetch_all
from simulation.provider.http_types import Handler
from simulation.provider.webhooks import sign

UNAVAILABLE_EVERY: Final = 10  # one request in so many gets a 503, as during a deployment; none gets two
TOLERANCE_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job as reported by a webhook."""

    webhook_id: str
    type: str
    job_id: str
    sequence: int


class WebhookListener:
    """An endpoint on a free loopback port. `received`: accepted webhooks, including duplicates."""

    def __init__(self) -> None:
        self.received: list[JobEnd] = []
        self.statuses: Counter[int] = Counter()
        self._refused: set[str] = set()  # with 503
        self._secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _build_handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def environment(self) -> dict[str, str]:
        """Return the settings that make moorage send webhooks here."""
        return {
            "MOORAGE_NOTIFY_URL": f"http://127.0.0.1:{self._server.server_port}/hooks",
            "MOORAGE_NOTIFY_SECRET": self._secret,
        }

    def receive(self, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status for a request; `headers` by lower-case name."""
        is_valid = is_signed(self._secret, headers, body, time.time())
        with self._lock:
            is_new = headers.get("webhook-id") not in self._refused
            is_unavailable = is_new and self.statuses.total() % UNAVAILABLE_EVERY == 0
            status = 401 if not is_valid else 503 if is_unavailable else 204
            self.statuses[status] += 1
            if status == 503:
                self._refused.add(headers["webhook-id"])
            if status == 204:
                event = json.loads(body)
                data = event["data"]
                self.received.append(JobEnd(headers["webhook-id"], event["type"], data["job_id"], data["sequence"]))
        return status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Return True for a valid, recent signature of Standard Webhooks 1.0; `now`: Unix seconds."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit() and abs(now - int(timestamp)) <= TOLERANCE_SECONDS):
        return False
    expected = sign(secret, webhook_id, timestamp, body).encode()
    signatures = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(expected, signature) for signature in signatures)


# Each end of each job, also of jobs that were reopened later; the event's id is the sequence of its webhook.
ENDS = """
SELECT id AS sequence, subject_id AS job_id, 'job.' || to_state AS type
  FROM events
 WHERE subject = 'job' AND to_state IN ('succeeded', 'partial', 'failed', 'cancelled')
"""

STATES = "SELECT id, state FROM jobs WHERE settled_at IS NOT NULL"


def check_notifications(conn: Connection, listener: WebhookListener) -> list[str]:
    """Return the differences between the ends that the application received and PostgreSQL's."""
    recorded = {(row["sequence"], str(row["job_id"]), row["type"]) for row in fetch_all(conn, ENDS)}
    received = {(end.sequence, end.job_id, end.type) for end in listener.received}
    newest = {job_id: type_ for _, job_id, type_ in sorted(received)}
    differences = [f"{type_} of {job_id} was not received" for _, job_id, type_ in sorted(recorded - received)]
    differences += [
        f"{type_} of {job_id} was received and is wrong" for _, job_id, type_ in sorted(received - recorded)
    ]
    for row in fetch_all(conn, STATES):
        last = newest.get(str(row["id"]))
        if last != f"job.{row['state']}":
            differences.append(f"job {row['id']} is {row['state']}, its application last received {last}")
    if len({end.webhook_id for end in listener.received}) != len(received):
        differences.append("an end was sent under two ids")
    if listener.statuses[401]:
        differences.append(f"{listener.statuses[401]} webhooks to the application had a wrong signature")
    return differences


def _build_handler(listener: WebhookListener) -> type[Handler]:
    class RequestHandler(Handler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_all(listener.receive(headers, body), {}, b"")

    return RequestHandler
