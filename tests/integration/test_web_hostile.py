"""Requests that try to break the API or to slow down the receiver beside it, with granian."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from db.connection import connect
from moorage.owner_tokens import SCOPES
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp

ENTRY = {"provider": "replicate", "model": "acme/picture", "input": {"prompt": "a harbour"}}
# Nothing answers there.
AWAY = {"REPLICATE_API_TOKEN": "r8_test", "REPLICATE_API_URL": "http://127.0.0.1:9"}
AWAY |= {"MOORAGE_EGRESS_ALLOW": "127.0.0.1:9", "REPLICATE_MODELS": "acme/picture"}
JSON = {"content-type": "application/json"}
BUSY_SECONDS = 30  # what a moment may take on a busy computer; the statuses alone tell that nothing was read for long


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    with wp.running(url, **AWAY) as process:
        yield process


@pytest.fixture(scope="module")
def bob(front: wp.Front) -> dict[str, str]:
    """Return the headers of bob's browser."""
    return owner(front, "bob")


def owner(front: wp.Front, name: str) -> dict[str, str]:
    body = json.dumps({"owner": name, "scopes": SCOPES}).encode()
    made = front.ask("POST", "/v1/owner-tokens", body, {**wp.BEARER, **JSON})
    return {"authorization": f"Bearer {made.fields['token']}"}


def form(job: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="job"\r\n\r\n' + job + b"\r\n--x--\r\n"


def names(count: int) -> bytes:
    return b",".join(b'"k%d":0' % n for n in range(count))


def test_a_duplicate_among_many_names_is_found_quickly(front: wp.Front, bob: dict[str, str]) -> None:
    """Comparing each of 80,000 names with all others took minutes, in which no webhook was processed."""
    body = b"{" + names(80_000) + b',"z":0,"z":0}'

    started = time.monotonic()
    refused = front.ask("POST", "/v1/jobs", body, {**bob, **JSON})

    assert refused.status == 400
    assert "duplicate name in an object: 'z'" in refused.fields["detail"]
    assert time.monotonic() - started < BUSY_SECONDS


@pytest.mark.parametrize(
    "headers", [{"cookie": "a=b; " * 20_000}, {"content-type": 'multipart/form-data; a="' + ";" * 60_000}]
)
def test_headers_are_bounded(front: wp.Front, bob: dict[str, str], headers: dict[str, str]) -> None:
    """Cookies and media types are parsed on the event loop, the latter in quadratic time."""
    started = time.monotonic()
    refused = front.ask("POST", "/v1/jobs", b"x", {**bob, **headers})

    assert refused.status == 431
    assert time.monotonic() - started < BUSY_SECONDS


def test_a_media_type_with_many_parameters_is_ignored(front: wp.Front, bob: dict[str, str]) -> None:
    """Within the limit of all headers it still took seconds."""
    started = time.monotonic()
    refused = front.ask("POST", "/v1/jobs", b"x", {**bob, "content-type": 'multipart/form-data; a="' + ";" * 30_000})

    assert refused.status == 415
    assert time.monotonic() - started < BUSY_SECONDS


@pytest.mark.parametrize("depth", [100, 600, 900])
def test_a_deeply_nested_form_is_rejected(front: wp.Front, bob: dict[str, str], depth: int) -> None:
    """The recursion ended in a 500."""
    job = b'{"owner":"bob","chain":' + b"[" * depth + b"]" * depth + b"}"

    refused = front.ask("POST", "/v1/jobs", form(job), {**bob, "content-type": "multipart/form-data; boundary=x"})

    assert refused.status == 422
    assert "nested more than 64 levels deep" in refused.fields["detail"]


def test_an_input_with_too_many_values_is_rejected(front: wp.Front, bob: dict[str, str]) -> None:
    """Each value is visited several times, and may violate the model's schema."""
    body = {"owner": "bob", "chain": [{**ENTRY, "input": {"images": [1] * 10_000}}]}

    refused = front.ask("POST", "/v1/jobs", json.dumps(body).encode(), {**bob, **JSON})

    assert refused.status == 422
    assert "holds more than 10000 values" in refused.fields["detail"]


@pytest.mark.parametrize("query", ["style=%00", "kind=%00", "project_id=%00", "before=%00", "limit=%00", "told=%00"])
def test_the_page_rejects_text_that_cannot_be_stored(front: wp.Front, bob: dict[str, str], query: str) -> None:
    """PostgreSQL accepts no NUL: the response was a 500."""
    assert front.call("GET", f"/?{query}", headers=bob)[0] == 404


def test_an_owner_token_creates_at_most_a_thousand_projects(front: wp.Front, url: str) -> None:
    """Each document may have a megabyte: one owner filled the disk of PostgreSQL."""
    body, paths = b'{"owner":"hoarder","document":{}}', [f"/v1/projects/p{n}" for n in range(1001)]
    browser = {**owner(front, "hoarder"), **JSON}
    with connect(url) as conn:
        sql = (
            "INSERT INTO projects (owner, id, document) SELECT 'hoarder', 'p' || n, '{}' FROM generate_series(0, 998) n"
        )
        conn.execute(sql)

    made, refused = (front.ask("PUT", path, body, browser) for path in paths[999:])

    assert (made.status, refused.status) == (201, 409)
    assert "has 1000 projects already" in refused.fields["detail"]
    assert front.ask("GET", paths[1000], None, browser).status == 404
    assert front.ask("PUT", paths[0], body, browser).status == 200
    assert front.ask("PUT", paths[1000], body, {**wp.BEARER, **JSON}).status == 201


def scenes(count: int, same_id: bool = False) -> bytes:
    made = [{"id": "one" if same_id else f"s{n}", "imageUrls": ["x"], "text": "x" * 800} for n in range(count)]
    return json.dumps({"document": {"scenes": made}}).encode()


def changed(front: wp.Front, method: str, path: str, body: bytes | None, bob: dict[str, str]) -> Any:
    started = time.monotonic()
    answer = front.ask(method, f"/v1/projects/{path}", body, {**bob, **(JSON if body else {})})
    assert answer.status < 300, answer.fields
    assert time.monotonic() - started < BUSY_SECONDS
    return front.ask("GET", f"/v1/projects/{path.partition('/')[0]}", headers=bob).fields["document"]["scenes"]


def test_a_long_document_is_written_once(front: wp.Front, bob: dict[str, str]) -> None:
    """It was written once for each changed scene: a thousand megabytes, behind a false 503."""
    written = changed(front, "PUT", "long", scenes(1000), bob)
    order = json.dumps({"order": [f"s{n}" for n in reversed(range(1000))]}).encode()
    ordered = changed(front, "PATCH", "long/scenes", order, bob)
    changed(front, "PUT", "same", scenes(1000, same_id=True), bob)
    removed = changed(front, "DELETE", "same/scenes/one", None, bob)

    assert len(written) == 1000
    assert all(scene["imageUrls"] == [] and len(scene["text"]) == 800 for scene in written)
    assert [scene["id"] for scene in ordered] == [f"s{n}" for n in reversed(range(1000))]
    assert removed == []


def test_an_owners_waiting_requests_are_bounded(front: wp.Front, bob: dict[str, str]) -> None:
    """Each asks PostgreSQL twice a second: four hundred of one owner left seconds for each request of the others."""
    path = front.register(owner="bob", external_id="waited_for").headers["location"]
    head = f"GET {path}?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: {bob['authorization']}\r\n\r\n"

    def measure(bearer: dict[str, str]) -> float:
        started = time.monotonic()
        assert front.ask("GET", f"{path}?wait=4", None, bearer).fields["state"] == "open"
        return time.monotonic() - started

    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", front.port)
        held = [stack.enter_context(socket.create_connection(address)) for _ in range(11)]
        for connection in held:
            connection.sendall(head.encode())
        assert len(select.select(held, [], [], 40)[0]) == 1  # the others wait
        assert measure(bob) < 3.5
        assert measure(wp.BEARER) > 3.5


def test_an_owners_slow_uploads_leave_slots_for_others(front: wp.Front, bob: dict[str, str]) -> None:
    """One browser that sent a byte now and then blocked all uploads for five minutes."""
    ada = {**owner(front, "ada"), "content-type": "image/png"}
    with contextlib.ExitStack() as slow:

        def is_full() -> bool:  # one more each time: some come while the question holds a place
            conn = slow.enter_context(front.connect())
            head = f"POST /v1/uploads HTTP/1.1\r\nHost: moorage\r\nAuthorization: {bob['authorization']}\r\n"
            conn.sendall(f"{head}Content-Type: image/png\r\nContent-Length: 1000\r\n\r\nx".encode())
            return front.ask("POST", "/v1/uploads", b"", {**ada, **bob}).status == 503

        rp.until(is_full)

        theirs = front.ask("POST", "/v1/uploads", b"", ada)

    assert theirs.status == 422  # let in: it is empty
    rp.until(lambda: front.ask("POST", "/v1/uploads", b"", {**ada, **bob}).status == 422, seconds=90)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/acme/picture/schema"])
def test_an_unavailable_provider_is_reported_without_its_url(front: wp.Front, bob: dict[str, str], path: str) -> None:
    """The URL, perhaps of the operator's proxy, is internal."""
    told = front.call("GET", path, headers=bob)
    ordered = front.call("POST", "/v1/jobs", json.dumps({"owner": "bob", "chain": [ENTRY]}).encode(), {**bob, **JSON})

    for status, _, body in (told, ordered):
        assert status in (200, 202, 503)
        assert b"replicate is unavailable: no usable response" in body
        assert b"127.0.0.1" not in body
        assert b"Errno" not in body


@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/jobs"])
def test_a_project_of_the_same_id_is_the_owners_own(front: wp.Front, bob: dict[str, str], path: str, url: str) -> None:
    """The files of one owner must not be placed in another's document."""
    front.ask("PUT", "/v1/projects/adas", b'{"owner": "ada", "document": {}}', {**wp.BEARER, **JSON})
    chain = {"chain": [ENTRY]} if path == "/v1/jobs" else {"provider": "replicate", "external_id": "stray"}
    body = {"owner": "bob", "project_id": "adas", **chain}

    made = front.ask("POST", path, json.dumps(body).encode(), {**wp.BEARER, **JSON})

    assert made.status in (201, 202)
    assert {row["owner"] for row in rp.rows(url, "SELECT owner FROM jobs WHERE project_id = 'adas'")} == {"bob"}
    adas = front.ask("GET", "/v1/projects/adas?owner=ada", None, wp.BEARER)
    assert adas.fields["progress"]["jobs"] == 0


def test_the_reason_of_a_retry_is_shown_to_applications_only(front: wp.Front, bob: dict[str, str], url: str) -> None:
    """It names internal servers: the hosts of storage and providers."""
    made = front.register(external_id="retried", owner="bob").fields
    with connect(url) as conn:
        conn.execute("UPDATE predictions SET reason = 'http://10.0.0.5 away' WHERE id = %s", [made["prediction_id"]])

    theirs, ours = (
        front.ask("GET", f"/v1/jobs/{made['job_id']}", headers=headers).fields["predictions"][0]
        for headers in (bob, wp.BEARER)
    )

    assert (theirs["state"], theirs["message"]) == ("running", None)
    assert ours["message"] == "http://10.0.0.5 away"
