"""The client in clients/python, against the API and against a server that fails."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
import requests
from moorage_client import Client, InvalidSignature, MoorageError, verify_webhook
from standardwebhooks.webhooks import Webhook

from providers import webhook_signing
from tasks import notifications
from tests.integration import web_process as wp

SECRET, OTHER = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0IGVuZA==", "whsec_YW5vdGhlciBzZWNyZXQgb2YgaXQgYWxs"


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute(statement)


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    with wp.running(url) as process:
        yield process


@pytest.fixture
def client(front: wp.Front) -> Client:
    return Client(f"http://127.0.0.1:{front.port}/", wp.TOKEN, retry_seconds=5)


def test_kept_urls_are_waited_for_and_listed(client: Client, url: str) -> None:
    """The way of an application that holds URLs."""
    made = client.keep(["https://files.example/a.png"], owner="cleo", metadata={"order": "1"}, idempotency_key="c-1")
    again = client.keep(["https://files.example/a.png"], owner="cleo", metadata={"order": "1"}, idempotency_key="c-1")

    assert (made["is_new"], again["is_new"]) == (True, False)
    assert client.get_job(made["job_id"])["metadata"] == {"order": "1"}
    with pytest.raises(TimeoutError, match=r"is keeping after 0\.3 s; it continues"):
        client.wait(made["job_id"], timeout=0.3)
    execute(url, f"UPDATE jobs SET state = 'failed', category = 'INTERNAL', run_at = NULL, settled_at = moment()"
                    f" WHERE id = '{made['job_id']}'")  # fmt: skip
    assert client.wait(made["job_id"])["state"] == "failed"


def test_renders_are_read_page_by_page(client: Client, url: str) -> None:
    """All of them, whatever the size of a page is."""
    for _ in range(53):
        job = client.register_prediction("replicate", f"page-{time.monotonic_ns()}", owner="pia")
        execute(url, f"INSERT INTO renders (id, owner, published_at) VALUES ('{job['job_id']}', 'pia', moment())")

    found = list(client.iter_renders(owner="pia"))

    assert len({render["render_id"] for render in found}) == len(found) == 53
    assert list(client.iter_renders(owner="nobody")) == []


def test_a_refused_request_names_its_fields(client: Client) -> None:
    """It is not repeated."""
    with pytest.raises(MoorageError) as caught:
        client.create_job(owner="ada", chain=[{"provider": "nobody", "model": "m", "input": {"prompt": "x"}}])

    assert (caught.value.status, caught.value.errors[0]["field"]) == (422, "chain[0].provider")
    assert caught.value.request_id


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers 503, closes the connection, then accepts."""

    answers: Any
    keys: list[str | None]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.append(self.headers["Idempotency-Key"])
        status = next(self.answers)
        if status == 0:
            self.connection.close()
            return
        body = json.dumps({"job_id": "1", "detail": "database unavailable, retry"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_503_and_lost_connections_are_asked_again(request: pytest.FixtureRequest) -> None:
    """With the same key, so that the job is created once."""
    Failing.answers, Failing.keys = iter([503, 0, 202]), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            made = Client(f"http://127.0.0.1:{server.server_port}", "t").keep(["https://a.example/b"], owner="ada")
        finally:
            server.shutdown()

    assert made["job_id"] == "1"
    assert len(Failing.keys) == 3
    assert len(set(Failing.keys)) == 1
    assert Failing.keys[0]


def test_a_wait_ends_with_its_timeout_whatever_the_server_does() -> None:
    """It went on for `retry_seconds`, and for the timeout of a request that is not answered."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        closed = Client(f"http://127.0.0.1:{_find_closed_port()}", "t", retry_seconds=60)
        for client in (closed, Client(f"http://127.0.0.1:{silent.getsockname()[1]}", "t")):
            started = time.monotonic()
            with pytest.raises(TimeoutError, match=r"job x could not be read within 0\.6 s: .*127\.0\.0\.1"):
                client.wait("x", timeout=0.6)
            assert 0.6 <= time.monotonic() - started < 5
    with pytest.raises(requests.ConnectionError):
        Client(closed._url, "t", retry_seconds=0.1).wait("x", timeout=60)


def _find_closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def signed(body: bytes, age: int = 0) -> dict[str, str]:
    secrets = (webhook_signing.decode_standard_secrets((_Secret(SECRET),), "TEST"))[0:1]
    return notifications.build_headers(UUID(int=1), body, int(time.time()) - age, secrets)


class _Secret:
    def __init__(self, value: str) -> None:
        self.get_secret_value = lambda: value


BODY = json.dumps({"type": "job.succeeded", "data": {"job_id": "1"}}).encode()


def test_a_notification_is_verified_in_any_case_of_its_headers() -> None:
    """With the secret before or after a rotation; the reference library agrees."""
    headers = signed(BODY)
    upper = {name.upper(): value for name, value in headers.items()}

    assert verify_webhook(upper, BODY, OTHER, SECRET)["data"] == {"job_id": "1"}
    assert verify_webhook(upper, BODY, f"{OTHER}, {SECRET}")["data"] == {"job_id": "1"}  # the text of the setting
    assert Webhook(SECRET).verify(BODY, headers) == json.loads(BODY)
    theirs = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(time.time())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", datetime.now(UTC), BODY.decode()),
    }
    assert verify_webhook(theirs, BODY, SECRET)["type"] == "job.succeeded"


@pytest.mark.parametrize(
    ("changes", "body", "secret", "age", "message"),
    [
        ({}, BODY + b" ", SECRET, 0, "no signature fits"),
        ({}, BODY, OTHER, 0, "no signature fits"),
        ({"webhook-id": None}, BODY, SECRET, 0, "webhook-id is missing"),
        ({"webhook-signature": "v1,"}, BODY, SECRET, 0, "no signature fits"),
        ({"webhook-timestamp": "soon"}, BODY, SECRET, 0, "not a number"),
        ({"webhook-signature": "v1,\u00e4"}, BODY, SECRET, 0, "no signature fits"),
        ({}, BODY, SECRET, 1_000_000, "more than 300 s"),
        ({"webhook-timestamp": "9" * 400}, BODY, SECRET, 0, "not a number"),
        ({"webhook-id": "a\udcff"}, BODY, SECRET, 0, "no signature fits"),
        ({"webhook-signature": "v1,\udcff"}, BODY, SECRET, 0, "no signature fits"),
    ],
)
def test_a_forged_notification_is_refused(
    changes: dict[str, str | None], body: bytes, secret: str, age: int, message: str
) -> None:
    """Every one with its reason; a bad secret is an error of the application."""
    headers = {name: value for name, value in {**signed(BODY, age), **changes}.items() if value is not None}
    with pytest.raises(InvalidSignature, match=message):
        verify_webhook(headers, body, secret)
    for bad in ("whsec_?", "", "whsec_", f"{SECRET},,{OTHER}"):
        with pytest.raises(ValueError, match=r"MOORAGE_NOTIFY_SECRET"):
            verify_webhook(headers, body, bad)
