"""What a sender of webhooks receives, with granian and PostgreSQL."""

import concurrent.futures
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from db.reports.metrics import REFUSED_WEBHOOKS
from embedded.stack import Stack
from tests.integration import receiver_process as rp

BODY = b'{"id": "ufawqhfynnddngldkgtslldrkq", "status": "processing"}'
PROVIDERS = ("replicate", "fal", "openai", "standard")
POST = b"POST /webhooks/replicate HTTP/1.1\r\nHost: moorage\r\n"


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return stack.postgres.create_database("receiver", template=template_database)


@pytest.fixture(scope="module")
def receiver(url: str) -> Iterator[rp.Receiver]:
    with rp.running(url) as process:
        yield process


def deliveries(url: str, webhook_id: str = "%") -> list[dict[str, object]]:
    return rp.rows(url, f"SELECT * FROM deliveries WHERE webhook_id LIKE '{webhook_id}'")


def test_a_new_webhook_is_recorded_and_a_second_one_is_known(receiver: rp.Receiver, url: str) -> None:
    """The guarantee: the bytes are in PostgreSQL before the 2xx, once."""
    at = datetime.now(UTC)
    signature = Webhook(rp.SECRET).sign("msg_new", at, BODY.decode())
    headers = {"webhook-id": "msg_new", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}

    first = receiver.call("POST", "/webhooks/replicate", BODY, headers)
    second = receiver.post(BODY, webhook_id="msg_new")

    (row,) = deliveries(url, "msg_new")
    assert first[0] == 202
    assert json.loads(first[2]) == {"id": str(row["id"]), "status": "recorded"}
    assert second[0] == 200
    assert json.loads(second[2]) == {"id": str(row["id"]), "status": "known"}
    assert bytes(row["body"]) == BODY
    assert row["body_sha256"] == hashlib.sha256(BODY).hexdigest()
    assert row["state"] == "new"
    assert "webhook-signature" not in row["headers"]
    assert rp.rows(url, f"SELECT from_state, to_state, actor FROM events WHERE subject_id = '{row['id']}'") == [
        {"from_state": None, "to_state": "new", "actor": "receiver"}
    ]


@pytest.mark.parametrize("prefix", ["", "/api", "/api/v1"])
@pytest.mark.parametrize("end", ["", "/", "?tenant=7"])
def test_every_spelling_of_the_path_is_accepted(receiver: rp.Receiver, prefix: str, end: str) -> None:
    """Providers do not follow redirects: a 301 to the trailing slash would lose the webhook."""
    status, _, _ = receiver.post(BODY, webhook_id=f"msg{prefix}{end}", path=f"{prefix}/webhooks/replicate{end}")

    assert status == 202


def test_a_key_in_the_body_is_redacted_before_the_digest(receiver: rp.Receiver, url: str) -> None:
    """Replicate repeats the webhook URL of a submission: a digest of other bytes would look like damage to an audit."""
    key = "k" * 43
    body = BODY.replace(b"}", f', "webhook": "https://us.example/webhooks/replicate?key={key}"}}'.encode())

    receiver.post(body, webhook_id="msg_repeating")

    (row,) = deliveries(url, "msg_repeating")
    assert bytes(row["body"]) == body.replace(key.encode(), b"*" * 43)
    assert row["body_sha256"] == hashlib.sha256(bytes(row["body"])).hexdigest()


def test_the_key_in_the_url_is_stored_as_a_hash_and_not_logged(receiver: rp.Receiver, url: str) -> None:
    """It identifies a submission whose response was lost; it must not be readable in rows or logs."""
    key = "k3y-of_one.prediction~"

    receiver.post(BODY, webhook_id="msg_keyed", path=f"/webhooks/replicate?key={key}&x=1")
    receiver.post(BODY, webhook_id="msg_keyless", path="/webhooks/replicate?x=1")

    assert deliveries(url, "msg_keyed")[0]["key_sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert deliveries(url, "msg_keyless")[0]["key_sha256"] is None
    assert key not in receiver.log()
    assert rp.rows(url, f"SELECT id FROM deliveries d WHERE d::text LIKE '%{key}%'") == []


def test_fifty_equal_concurrent_webhooks_create_one_row(receiver: rp.Receiver, url: str) -> None:
    """Senders retry while the first request is still in progress."""
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda _: receiver.post(BODY, webhook_id="msg_fifty"), range(50)))

    assert sorted(status for status, _, _ in replies) == [200] * 49 + [202]
    assert len({json.loads(body)["id"] for _, _, body in replies}) == 1
    assert len(deliveries(url, "msg_fifty")) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe\x00\x80", b"not json", b'{"logs": "\\u0000"}', b'{"seed": 196619188014358660}', b"[" * (16 << 20)],
    ids=["empty", "not-utf8", "not-json", "nul", "large-integer", "16-mib-of-brackets"],
)
def test_any_signed_bytes_are_recorded_unchanged(receiver: rp.Receiver, url: str, body: bytes) -> None:
    """What cannot be parsed becomes a dead letter later; rejecting it here would lose it."""
    webhook_id = "msg_" + hashlib.sha256(body).hexdigest()

    status, _, _ = receiver.post(body, webhook_id=webhook_id)

    (row,) = deliveries(url, webhook_id)
    assert status == 202
    assert bytes(row["body"]) == body


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h | {"webhook-signature": "v1,"},
        lambda h: h | {"webhook-signature": "v1,bm90IHRoZSBzaWduYXR1cmU="},
        lambda h: h | {"webhook-signature": "no comma, at all, here"},
        lambda h: h | {"webhook-signature": "v1,\xe9\xff"},
        lambda h: h | {"webhook-timestamp": "1.5"},
        lambda h: h | {"webhook-timestamp": "1" * 30},
        lambda h: h | {"webhook-timestamp": "\xb2"},
        lambda h: rp.signed(BODY, webhook_id="msg_bad", at=1_600_000_000),
        lambda h: {k: v for k, v in h.items() if k != "webhook-id"},
        lambda h: {},
    ],
    ids=["empty", "wrong", "malformed", "non-ascii", "1.5", "30-digits", "superscript", "stale", "no-id", "unsigned"],
)
def test_a_bad_signature_is_401_with_a_reason(receiver: rp.Receiver, url: str, change) -> None:  # type: ignore[no-untyped-def]
    """Reference libraries raise on several of these: a 500 would make providers retry forever."""
    headers = change(rp.signed(BODY, webhook_id="msg_bad"))

    status, answered, body = receiver.call("POST", "/webhooks/replicate", BODY, headers)

    assert status == 401
    assert answered["content-type"] == "application/problem+json"
    assert json.loads(body)["detail"]
    assert rp.SECRET not in body.decode()
    assert deliveries(url, "msg_bad") == []


def test_a_duplicate_signature_header_is_401(receiver: rp.Receiver, url: str) -> None:
    """Libraries disagree on which of the two counts: reject both."""
    lines = [f"{k}: {v}" for k, v in rp.signed(BODY, webhook_id="msg_double").items()]
    head = "\r\n".join([*lines, lines[-1], f"Content-Length: {len(BODY)}"]).encode()

    with receiver.connect() as conn:
        conn.sendall(POST + head + b"\r\n\r\n" + BODY)
        reply = rp.read_reply(conn)

    assert reply.startswith(b"401")
    assert deliveries(url, "msg_double") == []


@pytest.mark.parametrize(("name", "hint"), [("nobody", "replicate"), ("standard", "STANDARD_WEBHOOK_SECRET")])
def test_a_disabled_provider_is_404_and_names_the_setting(receiver: rp.Receiver, name: str, hint: str) -> None:
    """The most common first mistake."""
    status, _, body = receiver.post(BODY, webhook_id="msg_404", path=f"/webhooks/{name}")

    assert status == 404
    assert hint in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (b"Content-Length: 17000000\r\n\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"),
    ],
    ids=["announced", "chunked"],
)
def test_a_body_over_the_limit_is_413_before_it_is_complete(receiver: rp.Receiver, head: bytes, sent: bytes) -> None:
    """The response is sent while the sender is still sending: nothing is read past the limit."""
    with receiver.connect() as conn:
        signed = "".join(f"{k}: {v}\r\n" for k, v in rp.signed(BODY, webhook_id="msg_large").items())
        conn.sendall(POST + signed.encode() + head)
        for _ in range(17 if sent else 0):
            conn.sendall(sent)
        reply = rp.read_reply(conn)

    assert reply.startswith(b"413")
    assert b"MOORAGE_WEBHOOK_MAX_BYTES" in reply


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 1000\r\n\r\n" + BODY,
        b"Transfer-Encoding: chunked\r\n\r\n3c\r\n" + BODY + b"\r\nZZ\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3c\r\n" + BODY + b"\r\n",
    ],
    ids=["short-body", "broken-chunking", "no-last-chunk"],
)
def test_a_request_that_ends_too_early_is_400_and_not_recorded(receiver: rp.Receiver, url: str, rest: bytes) -> None:
    """A truncated body may still be valid JSON: it must not be recorded as complete."""
    before = len(deliveries(url))
    lines = [f"{k}: {v}\r\n" for k, v in rp.signed(BODY, webhook_id="msg_cut").items()]

    with receiver.connect() as conn:
        conn.sendall(POST + "".join(lines).encode() + rest)
        conn.shutdown(1)
        reply = rp.read_reply(conn)

    assert reply.startswith(b"400")
    assert len(deliveries(url)) == before


@pytest.mark.parametrize(("method", "expected"), [("GET", 200), ("HEAD", 200), ("OPTIONS", 204), ("PUT", 405)])
def test_head_and_options_respond_at_once(receiver: rp.Receiver, method: str, expected: int) -> None:
    """Some providers send HEAD or OPTIONS, with a timeout of a second, when a URL is registered."""
    status, headers, _ = receiver.call(method, "/webhooks/replicate")

    assert status == expected
    assert "POST" in headers["allow"]


def test_the_receiver_loads_nothing_of_the_workers(url: str) -> None:
    """A receiver that loads Pillow or boto3 starts slowly and shares their failures."""
    code = (
        "import sys, receiver.app, worker.celery; heavy = {'tasks', 'storage', 'embedded', 'PIL', 'boto3', 'botocore'};"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )

    found = subprocess.run(
        [sys.executable, "-c", code], env=rp.environment(url), cwd=rp.ROOT / "tests", capture_output=True, check=True
    )

    assert found.stdout.strip() == b"[]"


def test_importing_the_application_needs_no_settings() -> None:
    """Servers import the application before they have read an environment; the import must not fail or hang."""
    env = {"PYTHONPATH": rp.environment("")["PYTHONPATH"]}

    found = subprocess.run(
        [sys.executable, "-c", "import receiver.app"], env=env, cwd=rp.ROOT / "tests", check=False, timeout=60
    )

    assert found.returncode == 0


def refused(url: str) -> list[int]:
    return [row["value"] for row in rp.rows(url, REFUSED_WEBHOOKS) if row["provider"] == "replicate"]


def post_forged(receiver: rp.Receiver, number: int) -> None:
    receiver.call("POST", "/webhooks/replicate", BODY + b" ", rp.signed(BODY, webhook_id=f"msg_{number}"))


def test_refused_webhooks_are_shown_to_operators_until_one_is_accepted(receiver: rp.Receiver, url: str) -> None:
    """A wrong secret made no row: only a counter of the process grew. A stranger without a signature counts nothing."""
    assert receiver.post(BODY, webhook_id="msg_before_refusals")[0] == 202
    for number in range(20):
        post_forged(receiver, number)
        receiver.call("POST", "/webhooks/replicate", BODY)  # of a stranger, who does not even try to sign it
        receiver.call("POST", f"/webhooks/nobody{number}", BODY)

    rp.until(lambda: refused(url) == [20])
    assert {str(row["provider"]) for row in rp.rows(url, "SELECT provider FROM webhook_refusals")} <= set(PROVIDERS)
    assert receiver.post(BODY, webhook_id="msg_after_refusals")[0] == 202
    assert refused(url) == []

    post_forged(receiver, 20)
    rp.until(lambda: refused(url) != [])
    assert refused(url) == [1], "those before it are over: a few stray requests must not add up to an alert"
