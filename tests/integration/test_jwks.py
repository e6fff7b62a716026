"""fal.ai's public keys and results over real HTTP: when they are fetched, and what a receiver answers meanwhile."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import providers
from embedded.stack import Stack
from moorage.errors import BadSignature, KeysStale, ProviderRefused, ProviderUnavailable
from moorage.settings import Settings
from providers.fal import Fal
from providers.jwks import KeySet
from tests.integration import receiver_process as rp
from tests.support.fal_signing import FORGER, KEY, SECOND, jwks, sign

BODY = b'{"request_id": "r1", "status": "OK", "payload": {"images": []}}'
KEYS = "/.well-known/jwks.json"
APP = "/fal-ai/flux/requests/r1"


class Server(ThreadingHTTPServer):
    """Serves configured paths (else 404) and records requests; `open` releases the responses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, bytes]] = {KEYS: (200, jwks(KEY))}
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.open = threading.Event()
        self.open.set()

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.server.open.wait(30)
        status, body = self.server.answers.get(self.path, (404, b"{}"))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.open.set()
        running.shutdown()
        thread.join()


def settings_for(server: Server) -> dict[str, str]:
    return {
        "fal_key": "id:secret",
        "fal_user_id": "me",
        "fal_queue_url": server.url(),
        "egress_allow": f"127.0.0.1:{server.server_port}",
    }


@pytest.fixture
def fal(server: Server) -> Fal:
    servers = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
    settings = Settings(_env_file=None, **servers, **settings_for(server))
    provider = providers.load(settings.with_constants(fal_jwks_url=(server.url(KEYS),)))["fal"]
    assert isinstance(provider, Fal)
    return provider


class Clock:
    """A clock that is set by the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def signed_now(key=KEY) -> list[tuple[bytes, bytes]]:
    return sign(BODY, key=key, at=int(time.time()))


def judge(provider: Fal, headers: list[tuple[bytes, bytes]]) -> None:
    """Verify as the receiver does: fetch once where the keys are stale."""
    try:
        provider.verify(headers, BODY, time.time())
    except KeysStale:
        provider.fetch_keys()
        provider.verify(headers, BODY, time.time())


# --- the set of keys --------------------------------------------------------------------------------------------


def test_the_first_webhook_fetches_the_keys_and_the_next_do_not(server: Server, fal: Fal) -> None:
    """One fetch is sufficient; our token is not sent there."""
    for _ in range(3):
        judge(fal, signed_now())

    assert server.asked == [(KEYS, None)]


def test_a_thousand_forged_webhooks_cause_one_fetch(server: Server, fal: Fal) -> None:
    """Forged webhooks must not cause many requests to fal."""
    judge(fal, signed_now())
    fal.key_set._attempted_at = -1e9  # the last fetch is long ago
    headers = signed_now(FORGER)

    for _ in range(1000):
        with pytest.raises(BadSignature):
            judge(fal, headers)

    assert len(server.asked) == 2


def test_fifty_that_fail_at_once_wait_for_one_fetch(server: Server, fal: Fal) -> None:
    """A rotation under load: all are verified with the new key, none is refused."""
    fal.key_set.replace_keys(jwks(KEY))
    fal.key_set._attempted_at = -1e9
    server.answers[KEYS] = (200, jwks(SECOND))

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda _: judge(fal, signed_now(SECOND)), range(50)))

    assert len(server.asked) == 1


def test_a_set_that_cannot_be_fetched_leaves_the_old_keys(server: Server) -> None:
    """fal's trouble must not cost us its webhooks."""
    clock = Clock()
    keys = KeySet("fal", [server.url(KEYS)], clock=clock)
    keys.fetch()
    before = keys.keys

    for answer in ((500, b""), (200, b"<html>"), (302, b""), (200, b" " * 300_000)):
        server.answers[KEYS] = answer
        clock.now += 90_000
        keys.fetch()

        assert keys.keys is before
        assert keys.is_stale()
        assert not keys.may_fetch()


def test_keys_are_fetched_again_after_a_day(server: Server) -> None:
    """A key that was withdrawn must not be good for ever."""
    clock = Clock()
    keys = KeySet("fal", [server.url(KEYS)], clock=clock)
    keys.fetch()
    clock.now += 24 * 3600 + 1

    assert keys.is_stale()
    assert keys.may_fetch()
    keys.fetch()
    assert not keys.is_stale()
    assert len(server.asked) == 2


def test_the_second_url_is_used_if_the_first_has_no_keys(server: Server) -> None:
    """fal has published its keys at two URLs without stating which one is permanent."""
    keys = KeySet("fal", [server.url("/gone"), server.url(KEYS), server.url("/never")])

    keys.fetch()

    assert [path for path, _ in server.asked] == ["/gone", KEYS]
    assert len(keys.keys) == 1


def test_without_a_key_the_set_is_requested_every_15_seconds(server: Server) -> None:
    """Without any, every webhook waits for it."""
    clock = Clock()
    keys = KeySet("fal", [server.url("/gone")], clock=clock)
    keys.fetch()

    assert not keys.may_fetch()
    clock.now += 15
    assert keys.may_fetch()


# --- the receiver -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return stack.postgres.create_database("jwks", template=template_database)


def environment(server: Server) -> dict[str, str]:
    given = settings_for(server)
    names = {name: ("MOORAGE_" if name == "egress_allow" else "") + name.upper() for name in given}
    return {names[name]: value for name, value in given.items()} | {"MOORAGE_DEV_FAL_JWKS_URL": server.url(KEYS)}


def post(receiver: rp.Receiver, body: bytes, key=KEY) -> int:
    headers = {name.decode(): value.decode() for name, value in sign(body, key=key, at=int(time.time()))}
    return receiver.call("POST", "/webhooks/fal", body, headers)[0]


def test_a_hanging_key_server_delays_only_webhooks_of_fal(server: Server, url: str) -> None:
    """The fetch is off the event loop: webhooks of other providers continue; fal's are retried, not refused."""
    server.open.clear()
    with rp.running(url, MOORAGE_DEV_ANSWER_SECONDS="4", **environment(server)) as receiver:
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(post, receiver, BODY) for _ in range(8)]
            rp.until(lambda: bool(server.asked))
            other = receiver.post(b'{"id": "x", "status": "processing"}', webhook_id="msg_beside")[0]
            still_hang = not any(one.done() for one in waiting)
            hung = {one.result() for one in waiting}
        server.open.set()
        rp.until(lambda: post(receiver, BODY) in (200, 202))
        again, forged = post(receiver, BODY), post(receiver, BODY, key=FORGER)

    (row,) = rp.rows(url, "SELECT * FROM deliveries WHERE provider = 'fal'")
    assert (other, hung, again, forged) == (202, {503}, 200, 401)
    assert still_hang  # when the other was answered
    assert bytes(row["body"]) == BODY
    assert row["headers"]["x-fal-webhook-user-id"] == "me"
    assert "x-fal-webhook-signature" not in row["headers"]
    assert len(server.asked) == 1


# --- results ----------------------------------------------------------------------------------------------------


def test_a_poll_requests_status_and_result_at_the_url_of_the_model(server: Server, fal: Fal) -> None:
    """The same paths as in a webhook, so that a file found by both is one file; the sub-path is no part of a queue."""
    payload = {"images": [{"url": "https://v3.fal.media/files/b/a.png"}], "seed": 196619188014358660}
    server.answers |= {f"{APP}/status": (200, b'{"status": "COMPLETED"}'), APP: (200, json.dumps(payload).encode())}

    report = fal.poll("r1", "fal-ai/flux/dev")

    assert server.asked == [(f"{APP}/status", "Key id:secret"), (APP, "Key id:secret")]
    assert (report.external_id, report.status, report.raw_status) == ("r1", "succeeded", "COMPLETED")
    assert [(found.path, found.url) for found in report.outputs] == [
        ("payload.images[0].url", "https://v3.fal.media/files/b/a.png")
    ]


@pytest.mark.parametrize("model", ["workflows/me/flow", "comfy/me/flow/sub"])
def test_the_prefix_of_a_workflow_is_part_of_its_address(server: Server, fal: Fal, model: str) -> None:
    """fal's client keeps it too."""
    with pytest.raises(ProviderRefused):
        fal.poll("r1", model)

    assert server.asked[0][0] == f"/{'/'.join(model.split('/')[:3])}/requests/r1/status"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((202, b'{"status": "IN_QUEUE", "queue_position": 3}'), "queued"),
        ((202, b'{"status": "IN_PROGRESS"}'), "running"),
        ((200, b'{"status": "RESTING"}'), "unknown"),
        ((200, b'{"status": "COMPLETED", "error": "CUDA out of memory", "error_type": "runner_error"}'), "failed"),
    ],
)
def test_only_what_is_completed_without_an_error_has_a_result(
    server: Server, fal: Fal, answer: tuple[int, bytes], status: str
) -> None:
    """A failure is COMPLETED, too; its result is not requested."""
    server.answers[f"{APP}/status"] = answer

    report = fal.poll("r1", "fal-ai/flux")

    assert (report.status, report.outputs) == (status, ())
    assert report.error == ("CUDA out of memory" if status == "failed" else None)
    assert len(server.asked) == 1


def test_a_result_that_is_the_models_own_refusal_is_a_failure_with_its_reason(server: Server, fal: Fal) -> None:
    """It will be the same tomorrow: no dead letter, no retry."""
    server.answers |= {
        f"{APP}/status": (200, b'{"status": "COMPLETED"}'),
        APP: (422, b'{"detail": [{"msg": "field required"}]}'),
    }

    report = fal.poll("r1", "fal-ai/flux")

    assert report.status == "failed"
    assert "field required" in (report.error or "")


TIMED_OUT = b'{"detail": "Request timed out", "error_type": "request_timeout"}'


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (504, TIMED_OUT, "the result is an error 504, request_timeout: Request timed out"),
        (503, b'{"error_type": "runner_disconnected"}', "the result is an error 503, runner_disconnected"),
        (500, b'{"detail": [{"msg": "CUDA out of memory"}]}', 'error 500: [{"msg": "CUDA out of memory"}]'),
        (422, b'{"error": "no prompt"}', "the result is an error 422"),
        (422, b'{"detail": "no prompt"}', "the result is an error 422: no prompt"),
        (400, b'{"detail": [{"type": "value_error"}]}', 'error 400: [{"type": "value_error"}]'),
        (403, b'{"detail": "no", "error_type": "bad_request"}', "the result is an error 403, bad_request: no"),
    ],
)
def test_a_final_error_in_place_of_the_result_is_a_failure_with_its_reason(
    server: Server, fal: Fal, status: int, body: bytes, says: str
) -> None:
    """The queue has given up: as an outage it would be polled until the deadline, and open the breaker."""
    server.answers |= {f"{APP}/status": (200, b'{"status": "COMPLETED"}'), APP: (status, body)}

    report = fal.poll("r1", "fal-ai/flux")

    assert (report.status, report.outputs) == ("failed", ())
    assert says in (report.error or "")


def test_a_final_error_is_also_known_by_its_header(server: Server, fal: Fal) -> None:
    """Its body may be of any form."""
    server.answers |= {f"{APP}/status": (200, b'{"status": "COMPLETED"}'), APP: (504, b"timed out")}
    server.headers["X-Fal-Error-Type"] = "startup_timeout"

    report = fal.poll("r1", "fal-ai/flux")

    assert (report.status, report.error) == ("failed", "the result is an error 504, startup_timeout")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (502, b"<html>", ProviderUnavailable),
        (500, b'{"message": "x"}', ProviderUnavailable),
        (503, b"[]", ProviderUnavailable),
        (429, TIMED_OUT, ProviderUnavailable),
        (401, TIMED_OUT, ProviderRefused),
        (403, b"<html>", ProviderRefused),
        (403, b'{"detail": "User is locked. Reason: Exhausted balance."}', ProviderRefused),
        (402, b'{"detail": [{"type": "balance", "msg": "exhausted"}]}', ProviderRefused),
        (405, b'{"detail": "Method Not Allowed"}', ProviderRefused),
        (408, b'{"detail": [{"msg": "slow"}]}', ProviderUnavailable),
        (400, b'{"detail": "Request is still in progress"}', ProviderRefused),
        (500, b'{"detail": "Internal Server Error"}', ProviderUnavailable),
        (503, b'{"detail": []}', ProviderUnavailable),
        (404, b'{"detail": "no such request"}', ProviderRefused),
    ],
)
def test_an_error_of_the_api_in_place_of_the_result_ends_nothing(
    server: Server, fal: Fal, status: int, body: bytes, error: type[Exception]
) -> None:
    """A proxy's page, a wrong key, a limit, a locked account: the prediction was paid, and its webhook still counts."""
    server.answers |= {f"{APP}/status": (200, b'{"status": "COMPLETED"}'), APP: (status, body)}
    server.headers["Retry-After"] = "7"

    with pytest.raises(error) as raised:
        fal.poll("r1", "fal-ai/flux")

    assert isinstance(raised.value, ProviderRefused | ProviderUnavailable)
    assert raised.value.facts == {"status": status}
    assert getattr(raised.value, "retry_after", None) == (7 if error is ProviderUnavailable else None)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (b'["https://v3.fal.media/files/b/a.png"]', ["payload[0]"]),
        (b'"https://v3.fal.media/files/b/a.png"', ["payload"]),
        (b"null", []),
    ],
)
def test_a_result_is_any_json(server: Server, fal: Fal, body: bytes, outputs: list[str]) -> None:
    """An app returns what it likes; a webhook with it is accepted, too."""
    server.answers |= {f"{APP}/status": (200, b'{"status": "COMPLETED"}'), APP: (200, body)}

    report = fal.poll("r1", "fal-ai/flux")

    assert (report.status, [file.path for file in report.outputs]) == ("succeeded", outputs)


def test_a_result_that_was_not_stored_is_gone(server: Server, fal: Fal) -> None:
    """X-Fal-Store-IO: 0 disables fal's store: only the webhook had the result, which must be reported."""
    server.answers[f"{APP}/status"] = (200, b'{"status": "COMPLETED"}')

    with pytest.raises(ProviderRefused) as raised:
        fal.poll("r1", "fal-ai/flux")

    assert raised.value.facts == {"status": 404}


@pytest.mark.parametrize("answer", [(500, b""), (429, b""), (200, b"<html>"), (200, b"[]")])
def test_a_malformed_response_is_retried(server: Server, fal: Fal, answer: tuple[int, bytes]) -> None:
    """It has no information about the request."""
    server.answers[f"{APP}/status"] = answer

    with pytest.raises(ProviderUnavailable):
        fal.poll("r1", "fal-ai/flux")
