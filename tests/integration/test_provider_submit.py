"""
What every provider that takes orders must do, over HTTP: how it orders, and what each answer of a server amounts to.

A new provider adds its wire to WIRES; `test_every_provider_that_accepts_submissions_is_in_this_suite` asks for it.
"""

import base64
import email
import errno
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator

import providers
from moorage.errors import (
    BillingRefused,
    NotSubmitted,
    ProviderRefused,
    ProviderUnavailable,
    RateLimited,
    ResourceExhausted,
    SubmitUncertain,
)
from moorage.local_errors import find_local_failure
from moorage.provider_types import InputFile, SubmitRequest
from moorage.settings import Settings
from providers import Provider, submit_client
from providers.submit_client import SubmitClient
from tests.integration.provider_server import TOKENS, Server, answer, provider_at, running

KEY = "Xq3_single-use-key_Zw9"
WEBHOOK = f"https://us.example/webhooks/them?key={KEY}"
PREDICTION_ID = UUID("01900000-0000-7000-8000-000000000001")
VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
PNG = b"\x89PNG\r\n\x1a\n and so on"


@dataclass(frozen=True)
class Wire:
    """The wire format of a provider."""

    model: str
    path: str
    good: bytes
    external_id: str
    authorization: str
    header: str = "Authorization"


WIRES = {
    "replicate": Wire(
        "owner/name",
        "/v1/models/owner/name/predictions",
        json.dumps({"id": "p1", "status": "starting", "webhook": WEBHOOK}).encode(),
        "p1",
        f"Bearer {TOKENS['replicate']}",
    ),
    "fal": Wire(
        "fal-ai/flux/dev",
        f"/fal-ai/flux/dev?fal_webhook={quote(WEBHOOK, safe='')}",
        b'{"request_id": "r1", "gateway_request_id": "g1", "status": "IN_QUEUE", "queue_position": 3}',
        "r1",
        f"Key {TOKENS['fal']}",
    ),
    "openai": Wire(
        "gpt-image-1",
        "/v1/images/generations",
        json.dumps({"created": 1790000000, "data": [{"b64_json": base64.b64encode(PNG).decode()}]}).encode(),
        str(PREDICTION_ID),
        f"Bearer {TOKENS['openai']}",
    ),
    "bfl": Wire(
        "flux-2-pro",
        "/v1/flux-2-pro",
        b'{"id": "b1", "polling_url": "https://api.eu.bfl.ai/v1/get_result?id=b1"}',
        "b1",
        TOKENS["bfl"],
        "x-key",
    ),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


@pytest.fixture(params=list(WIRES))
def wire(request: Any) -> Wire:
    return WIRES[request.param]


@pytest.fixture
def name(wire: Wire) -> str:
    return next(name for name, one in WIRES.items() if one is wire)


@pytest.fixture
def provider(server: Server, name: str) -> Provider:
    return provider_at(name, server.server_port)


def order(model: str, **given: Any) -> SubmitRequest:
    return SubmitRequest(PREDICTION_ID, model, given or {"prompt": "a harbour at dawn, é"}, WEBHOOK)


def test_every_provider_that_accepts_submissions_is_in_this_suite(server):
    """The responses of a provider outside it are untested."""
    given = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
    bare = providers.load(Settings(_env_file=None, **given)).values()

    assert {one.name for one in bare if one.submit_setting} | {"bfl"} == set(WIRES)  # of the catalog
    assert not any(one.can_submit or one.can_list or one.can_cancel for one in bare)
    assert all(provider_at(name, server.server_port).can_submit for name in WIRES)


def test_an_order_is_one_request_with_token_and_input(server, provider, wire):
    """The token goes to this address and the key of the webhook with it: both belong nowhere else."""
    server.answer = answer(201, wire.good)

    submitted = provider.submit(order(wire.model))

    (asked,) = server.asked
    assert submitted.external_id == wire.external_id
    assert (asked.method, asked.path) == ("POST", wire.path)
    assert asked.headers[wire.header] == wire.authorization
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.fields.get("input", asked.fields)["prompt"] == "a harbour at dawn, é"
    assert (submitted.report is not None) == provider.is_synchronous


def test_orders_share_no_connection(server, provider, wire):
    """On one the server has just closed, an order that was never read would look like one whose answer was lost."""
    server.answer = answer(200, wire.good)

    for _ in range(3):
        provider.submit(order(wire.model))

    assert server.connections == 3


# --- nothing was made -------------------------------------------------------------------------------------------


def test_no_connection_means_that_nothing_was_created(name, wire):
    """It may be sent again without a doubt."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        provider = provider_at(name, taken.getsockname()[1])

        with pytest.raises(NotSubmitted, match="no connection") as raised:
            provider.submit(order(wire.model))

    assert type(raised.value) is NotSubmitted
    assert wire.authorization.split()[-1] not in str(raised.value)


@pytest.mark.parametrize("host", ["nowhere.invalid", "127.0.0.1"])
def test_no_name_or_certificate_means_that_nothing_was_created(server, name, wire, host):
    """DNS and TLS come before the first byte of an order."""
    provider = provider_at(name, server.server_port, scheme="https", host=host)

    with pytest.raises(NotSubmitted, match="no connection"):
        provider.submit(order(wire.model))

    assert server.asked == []


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, b"{}", None),
        ({"Retry_After": "7"}, b"{}", 7),
        ({"Retry_After": "86400"}, b"{}", 3600),
        ({"Retry_After": "soon", "retry_after_ms": "1500"}, b"{}", 1.5),
        ({}, b'{"detail": "Request was throttled. Your rate limit resets in ~30s."}', 30),
        ({}, b"<html>slow down</html>", None),
    ],
)
def test_a_busy_provider_states_when_to_retry(server, provider, wire, headers, body, seconds):
    """It does not count as an attempt: nothing was created."""
    server.answer = answer(429, body, **headers)

    with pytest.raises(RateLimited, match="429") as raised:
        provider.submit(order(wire.model))

    assert raised.value.retry_after == seconds
    assert len(server.asked) == 1


def test_the_time_to_come_again_may_be_a_date(server, provider, wire):
    """Both forms are HTTP."""
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.answer = answer(429, Retry_After=at)

    with pytest.raises(RateLimited) as raised:
        provider.submit(order(wire.model))

    assert 50 <= raised.value.retry_after <= 60


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (402, b'{"title": "Payment required", "detail": "You have run out of credit", "status": 402}'),
        (402, b"no json"),
        (429, b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'),
        (429, b'{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": null}}'),
        (400, b'{"error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}}'),
        (403, b'{"detail": "User is locked. Reason: Exhausted balance. Top up your balance"}'),
        (401, b'{"detail": "Invalid token"}'),
    ],
)
def test_a_billing_refusal_is_distinguished(server, provider, wire, status, body):
    """No retry succeeds; an operator must act."""
    server.answer = answer(status, body, Retry_After="1")

    with pytest.raises(BillingRefused, match=str(status)):
        provider.submit(order(wire.model))


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 410, 413, 415, 418, 422, 451])
def test_a_refusal_is_final_with_its_reason(server, provider, wire, status):
    """The next entry of the chain is better than the same refusal again."""
    server.answer = answer(status, b'{"detail": "prompt: too long"}')

    with pytest.raises(ProviderRefused, match=f"{status}: prompt: too long") as raised:
        provider.submit(order(wire.model))

    assert type(raised.value) is ProviderRefused
    assert raised.value.facts["status"] == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "Invalid size", "code": "invalid_value"}}', "Invalid size"),
        (b'{"detail": [{"loc": ["body", "prompt"], "msg": "field required"}]}', "body.prompt: field required"),
        (b'{"detail": [{"loc": 1, "msg": "bad"}, "also", null, {"msg": 2}]}', "bad; also"),
        (b'{"title": "Invalid version", "status": 422}', "Invalid version"),
        (b'{"error": "no \\u0000 and \\ud800"}', r"no \\x00 and"),
        (b"<html>" + b"x" * 10**6, "422$"),
        (b'{"detail": "' + b"x" * 10_000 + b'"}', "x{200}…$"),
        (b"", "422$"),
    ],
)
def test_the_reason_is_the_providers_own_and_short(server, provider, wire, body, words):
    """It stands in the job's history, where a person reads it."""
    server.answer = answer(422, body)

    with pytest.raises(ProviderRefused, match=words) as raised:
        provider.submit(order(wire.model))

    assert len(str(raised.value)) < 400


def test_a_reason_contains_neither_token_nor_key(server, provider, wire):
    """A provider that repeats what it was sent must not write them into our rows."""
    token = wire.authorization.split()[-1]

    def repeat(request: BaseHTTPRequestHandler) -> None:
        sent = f"{token} {unquote(request.path)} {server.asked[0].fields.get('webhook', '')} are wrong"
        answer(422, json.dumps({"detail": sent}).encode())(request)

    server.answer = repeat

    with pytest.raises(ProviderRefused, match="are wrong") as raised:
        provider.submit(order(wire.model))

    assert KEY not in str(raised.value)
    assert token not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes"])
def test_an_input_that_is_no_json_is_not_sent(server, provider, wire, value):
    """Providers read NaN as they like."""
    with pytest.raises(ProviderRefused, match="JSON"):
        provider.submit(order(wire.model, prompt=value))

    assert server.asked == []


# --- nobody knows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308, 408, 500, 502, 503, 504, 529])
def test_a_possibly_created_prediction_is_uncertain(server, provider, wire, status):
    """A proxy times out while its server continues; a redirect is not followed, since it would receive the token."""
    server.answer = answer(status, Location=f"http://127.0.0.1:{server.server_port}/elsewhere", Retry_After="3")

    with pytest.raises(SubmitUncertain, match=str(status)):
        provider.submit(order(wire.model))

    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"null", b'{"id": {}, "request_id": "", "data": 1}'])
def test_a_yes_that_names_nothing_is_uncertain(server, provider, wire, body):
    """A prediction was created with an unknown id."""
    server.answer = answer(200, body)

    with pytest.raises(SubmitUncertain):
        provider.submit(order(wire.model))


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Len", b"SSH-2.0-OpenSSH_9.9\r\n"])
def test_an_answer_that_is_none_is_uncertain(server, provider, wire, sent):
    """The order had been read by then; a status that was cut off with its head is no answer either."""

    def hang_up(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(sent)
        request.close_connection = True

    server.answer = hang_up

    with pytest.raises(SubmitUncertain):
        provider.submit(order(wire.model))

    assert len(server.asked) == 1


def test_an_answer_cut_short_is_uncertain(server, provider, wire):
    """What is short by a byte is not an answer, also where it can be read."""

    def cut(request: BaseHTTPRequestHandler) -> None:
        answer(201, wire.good, Content_Length=str(len(wire.good) + 1))(request)
        request.close_connection = True

    server.answer = cut

    with pytest.raises(SubmitUncertain, match="IncompleteRead"):
        provider.submit(order(wire.model))


SLOW = [
    b"",
    b"HTTP/1.1 200 OK\r\nX-Slow: ",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    b"HTTP/1.1 422 No\r\nContent-Length: 100000\r\n\r\n",
]


@pytest.mark.parametrize("head", SLOW)
@pytest.mark.parametrize("drop", [b"", b" "])
def test_a_provider_that_is_silent_or_trickles_is_left_in_time(server, head, drop):
    """Each byte would put off a time-out of reads: a thread would hang, its lease renewed for ever."""

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(head)
        while not server.over.wait(0.02):
            request.wfile.write(drop)

    server.answer = trickle
    submitter = SubmitClient("them", ("Authorization", "Bearer x"), max_bytes=10**6, response_seconds=0.3)
    began = datetime.now(UTC)

    with pytest.raises(SubmitUncertain, match="timed out"):
        submitter.send(f"http://127.0.0.1:{server.server_port}/", {})

    assert datetime.now(UTC) - began < timedelta(seconds=30)


def test_an_answer_above_the_limit_is_uncertain_and_not_read(server):
    """A worker's memory is not the provider's to fill."""
    server.answer = answer(200, b" " * 2**24)
    submitter = SubmitClient("them", ("Authorization", "Bearer x"), max_bytes=1000)

    with pytest.raises(SubmitUncertain, match="more than 1000 bytes"):
        submitter.send(f"http://127.0.0.1:{server.server_port}/", {})


def test_the_environment_changes_neither_token_nor_way(server, provider, wire, tmp_path, monkeypatch):
    """A .netrc would replace the token, a proxy variable would disclose it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.answer = answer(200, wire.good)

    provider.submit(order(wire.model))

    assert server.asked[0].headers[wire.header] == wire.authorization


def test_a_refusal_before_the_whole_body_was_sent_is_read(server, provider, wire):
    """A server that dislikes the head of a request may answer at once; that is a refusal, and no doubt."""
    server.reads_bodies = False

    def refuse(request: BaseHTTPRequestHandler) -> None:
        answer(413, b'{"detail": "too large"}')(request)
        request.close_connection = True

    server.answer = refuse

    with pytest.raises(ProviderRefused, match="413: too large"):
        provider.submit(order(wire.model, prompt="x" * 2**23))


def test_submissions_use_tls(server, name, wire, tmp_path, monkeypatch):
    """With a certificate that is trusted, the answer is read to its end."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(submit_client, "_get_tls_context", lambda: ssl.create_default_context(cafile=certificate))
    server.answer = answer(200, wire.good)

    submitted = provider_at(name, server.server_port, scheme="https").submit(order(wire.model, prompt="x" * 2**20))

    assert submitted.external_id == wire.external_id
    assert len(server.asked[0].body) > 2**20


# --- each dialect's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        ("owner/name", "/v1/models/owner/name/predictions", None),
        (f"owner/name:{VERSION}", "/v1/predictions", VERSION),
        (VERSION, "/v1/predictions", VERSION),
        ("deployments/owner/name", "/v1/deployments/owner/name/predictions", None),
    ],
)
def test_the_model_determines_the_path_at_replicate(server, model, path, version):
    """With the webhook's address and its end alone: starts and logs would cost us deliveries."""
    server.answer = answer(201, WIRES["replicate"].good)

    provider_at("replicate", server.server_port).submit(order(model))

    (asked,) = server.asked
    assert asked.path == path
    assert "Prefer" not in asked.headers
    expected = {"input": order(model).input, "webhook": WEBHOOK, "webhook_events_filter": ["completed"]}
    assert asked.fields == expected | ({"version": version} if version else {})


BAD = ["", "name", "a/../b", "a/b/c", "deployments/a", "deployments/a/b/c", "a/b:latest", "a/b:", "a b/c", "a/b?c", "/"]


@pytest.mark.parametrize("model", BAD)
def test_an_invalid_replicate_model_is_not_requested(server, model):
    """It is application input: it must not send our token to another endpoint."""
    with pytest.raises(ProviderRefused, match=r"model|version"):
        provider_at("replicate", server.server_port).submit(order(model))

    assert server.asked == []


@pytest.mark.parametrize("model", ["", "flux", "fal-ai/../x", "a/b?fal_webhook=x", "workflows/me", "a//b"])
def test_an_invalid_fal_model_is_not_requested(server, model):
    """A request that could not be polled later must not be submitted."""
    with pytest.raises(ProviderRefused, match="model"):
        provider_at("fal", server.server_port).submit(order(model))

    assert server.asked == []


@pytest.mark.parametrize(("said", "warned"), [(WEBHOOK, False), (None, True), ("https://us.example/other", True)])
def test_a_webhook_that_replicate_does_not_echo_is_logged(server, caplog, said, warned):
    """It was dropped silently in the past; polling detects the end, and the log explains the delay."""
    server.answer = answer(201, json.dumps({"id": "p1", "status": "starting", "webhook": said}).encode())

    submitted = provider_at("replicate", server.server_port).submit(order("owner/name"))

    assert submitted.external_id == "p1"
    assert ("submit.webhook_not_echoed" in caplog.messages) is warned
    assert KEY not in caplog.text


def test_certificates_that_cannot_be_read_mean_that_nothing_was_sent(monkeypatch):
    """Without a free file descriptor there is no connection: this is not an uncertain submission."""

    def fail() -> ssl.SSLContext:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(submit_client, "_get_tls_context", fail)
    submitter = SubmitClient("them", ("Authorization", "Bearer x"), max_bytes=1000)

    with pytest.raises(NotSubmitted, match="Too many open files") as raised:
        submitter.send("https://127.0.0.1:9/v1/predictions", {})

    assert isinstance(find_local_failure(raised.value), ResourceExhausted)


def test_openai_answers_with_the_pictures(server):
    """Named by the request's own id, which its support asks for."""
    second = "data:image/png;base64," + base64.b64encode(b"two").decode()
    data = [{"b64_json": base64.b64encode(PNG).decode()}, {"url": second}, {"revised_prompt": "none"}, 3]
    body = json.dumps({"created": 1790000000, "data": data}).encode()
    server.answer = answer(200, body, x_request_id="req_123")

    submitted = provider_at("openai", server.server_port).submit(order("gpt-image-1", prompt="x", n=2))

    report = submitted.report
    assert server.asked[0].fields == {"prompt": "x", "n": 2, "model": "gpt-image-1"}
    assert (submitted.external_id, report.external_id, report.status) == ("req_123", "req_123", "succeeded")
    assert [(one.path, one.data) for one in report.outputs] == [("data[0].b64_json", PNG), ("data[1].url", b"two")]
    assert report.completed_at == datetime.fromtimestamp(1790000000, UTC)
    assert report.expires_at is None


def test_openai_must_respond_within_the_time_limit_of_its_entry(server):
    """The next entry of the fallback chain starts at the time limit, not when a slow image is finished."""
    server.answer = lambda _: server.over.wait(60)
    began = datetime.now(UTC)

    with pytest.raises(SubmitUncertain, match="timed out"):
        provider_at("openai", server.server_port).submit(replace(order("gpt-image-1"), timeout_seconds=0.3))

    assert datetime.now(UTC) - began < timedelta(seconds=30)


@pytest.mark.parametrize("life_seconds", [None, 7200])
def test_urls_of_openai_live_an_hour_and_must_be_allowed(server, monkeypatch, life_seconds):
    """A retry after that would find nothing; a compatible service may declare another time."""
    monkeypatch.setattr(providers.OpenAI, "output_lifetime_seconds", life_seconds)
    data = [{"url": "https://files.example/a.png"}, {"url": "https://evil.example/b.png"}]
    server.answer = answer(200, json.dumps({"created": 1790000000, "data": data}).encode())
    provider = provider_at("openai", server.server_port, openai_output_hosts="files.example")

    report = provider.submit(order("dall-e-3", prompt="x", response_format="url")).report

    assert [bool(one.problem) for one in report.outputs] == [False, True]
    assert report.expires_at == datetime.fromtimestamp(1790000000 + (life_seconds or 3600), UTC)
    assert server.asked[0].fields["response_format"] == "url"


@pytest.mark.parametrize(("model", "form"), [("dall-e-3", "b64_json"), ("gpt-image-1", None)])
def test_base64_is_requested_from_openai_models_with_a_choice(server, model, form):
    """gpt-image refuses the field, dall-e would answer with addresses."""
    server.answer = answer(200, WIRES["openai"].good)

    provider_at("openai", server.server_port).submit(order(model))

    assert server.asked[0].fields.get("response_format") == form


def test_a_success_of_openais_without_pictures_is_a_success_without_files(server):
    """The step knows what follows that; nothing is left to be looked for."""
    server.answer = answer(200, b'{"created": "soon", "data": []}')

    report = provider_at("openai", server.server_port).submit(order("gpt-image-1")).report

    assert (report.status, report.outputs, report.completed_at) == ("succeeded", (), None)


def parse_form(asked: Any) -> list[tuple[str, str | None, str, bytes]]:
    """Return name, file name, content type and bytes of each part, read with the standard library."""
    message = email.message_from_bytes(f"Content-Type: {asked.headers['Content-Type']}\r\n\r\n".encode() + asked.body)
    return [
        (str(part.get_param("name", header="content-disposition")), part.get_filename(), part.get_content_type(),
         bytes(part.get_payload(decode=True)))
        for part in message.walk() if not part.is_multipart()
    ]  # fmt: skip


FILE = InputFile("image.png", "image/png", PNG)


@pytest.mark.parametrize("image", [FILE, [FILE, FILE]])
def test_an_order_with_input_files_is_an_edit(server, image):
    """A form with the bytes: OpenAI reads no URLs. Options keep their values."""
    server.answer = answer(200, WIRES["openai"].good)
    options = {"output_format": "webp", "background": "transparent", "n": 2, "user": "é"}

    submitted = provider_at("openai", server.server_port).submit(
        order("gpt-image-1", image=image, mask=FILE, **options)
    )

    (asked,) = server.asked
    assert asked.path == "/v1/images/edits"
    assert submitted.report is not None
    assert len(submitted.report.outputs) == 1
    parts = parse_form(asked)
    name = "image[]" if isinstance(image, list) else "image"
    assert [part for part in parts if part[1]] == [
        *[(name, "image.png", "image/png", PNG)] * (2 if isinstance(image, list) else 1),
        ("mask", "image.png", "image/png", PNG),
    ]
    assert {part[0]: part[3].decode() for part in parts if not part[1]} == {
        "model": "gpt-image-1", "output_format": "webp", "background": "transparent", "n": "2", "user": "é"
    }  # fmt: skip


def test_options_of_gpt_image_are_passed_on(server):
    """Format and transparency are OpenAI's to judge; an unknown format is refused with the job request."""
    server.answer = answer(200, WIRES["openai"].good)
    options = {"prompt": "a boat", "output_format": "webp", "background": "transparent", "quality": "high"}
    openai = provider_at("openai", server.server_port)

    openai.submit(order("gpt-image-1", **options))

    assert server.asked[0].fields == {**options, "model": "gpt-image-1"}
    schema = openai.get_input_schema("gpt-image-1") or {}
    assert not list(Draft202012Validator(schema).iter_errors({**options, "more": 1}))
    for wrong in ({"output_format": "gif"}, {"prompt": ""}, {"background": 1}):
        assert list(Draft202012Validator(schema).iter_errors({**options, **wrong})), wrong
    assert openai.get_input_schema("dall-e-3") is None


@pytest.mark.parametrize(
    "image", ["https://us.example/a.png", "data:image/png;base64,AAAA", [FILE, "https://us.example"]]
)
def test_an_image_that_is_no_file_is_refused_by_us(server, image):
    """OpenAI would say that the parameter is unknown; other models behind the same API may take a URL."""
    openai = provider_at("openai", server.server_port)
    with pytest.raises(ProviderRefused, match="sent as files: write"):
        openai.submit(order("gpt-image-1", image=image))
    assert server.asked == []
    server.answer = answer(200, WIRES["openai"].good)

    openai.submit(order("flux-kontext", image_url="https://us.example/a.png"))

    assert server.asked[0].fields["image_url"] == "https://us.example/a.png"


# --- Black Forest Labs ------------------------------------------------------------------------------------------


def test_a_submission_to_bfl_names_webhook_and_secret(server, caplog):
    """A webhook is signed only if its submission has a secret; the region must be the one that is polled."""
    bfl = provider_at("bfl", server.server_port)
    server.answer = answer(200, WIRES["bfl"].good)

    bfl.submit(order("flux-2-pro", prompt="x", seed=7))
    bfl.submit(replace(order("flux-2-pro"), webhook_url=None))

    first, second = (one.fields for one in server.asked)
    expected = {"webhook_url": WEBHOOK, "webhook_secret": "secret_of_the_webhooks"}
    assert first == {"prompt": "x", "seed": 7, **expected}
    assert not expected.keys() & second.keys()
    assert "submit.polled_elsewhere" in caplog.text


def test_a_task_that_bfl_does_not_find_is_left_open(server):
    """It may be of another region: its webhook would come too late for a prediction that has failed."""
    bfl = provider_at("bfl", server.server_port)
    statuses = []
    for word in ("Task not found", "Request Moderated", "Pending"):
        server.answer = answer(200, json.dumps({"id": "b1", "status": word}).encode())
        statuses.append(bfl.poll("b1").status)

    server.answer = answer(404, b'{"status": "Task not found"}')
    statuses.append(bfl.poll("b1").status)
    server.answer = answer(403)
    with pytest.raises(ProviderRefused):
        bfl.poll("b1")

    assert statuses == ["unknown", "failed", "running", "unknown"]
    assert {one.path for one in server.asked} == {"/v1/get_result?id=b1"}


def test_an_answer_of_bfl_needs_no_id_but_has_no_other(server):
    """The documented ones have none: which task was asked about is known."""
    bfl, sample = provider_at("bfl", server.server_port), "https://delivery-us.bfl.ai/results/a.png"
    reports = []
    for body in ({"status": "Pending"}, {"id": None, "status": "Ready", "result": {"sample": sample}}):
        server.answer = answer(200, json.dumps(body).encode())
        reports.append(bfl.poll("b1"))
    server.answer = answer(200, b'{"id": "b2", "status": "Pending"}')
    with pytest.raises(ProviderUnavailable, match="about b2, which was not requested"):
        bfl.poll("b1")

    assert [(one.external_id, one.status) for one in reports] == [("b1", "running"), ("b1", "succeeded")]
    assert [file.url for file in reports[1].outputs] == [sample]


def test_no_secret_of_bfl_comes_back_in_a_message(server):
    """An error may repeat what was sent."""
    server.answer = answer(422, b'{"error": "validation", "message": "secret_of_the_webhooks"}')
    with pytest.raises(ProviderRefused) as raised:
        provider_at("bfl", server.server_port).submit(order("flux-2-pro"))
    server.answer = answer(422, b'{"detail": "webhook_secret secret_of_the_webhooks is short"}')
    with pytest.raises(ProviderRefused) as other:
        provider_at("bfl", server.server_port).submit(order("flux-2-pro"))

    assert "secret_of" not in str(raised.value) + str(other.value)
    assert "[...] is short" in str(other.value)


@pytest.mark.parametrize("model", ["", "../v1", "a b", "a//b", "a/../b"])
def test_a_model_of_bfl_leads_to_no_other_path(server, model):
    """It is input of an application."""
    with pytest.raises(ProviderRefused, match="write it as flux-2-pro"):
        provider_at("bfl", server.server_port).submit(order(model))
    assert server.asked == []


def test_the_wait_of_a_busy_bfl_is_in_its_body(server):
    """At most 24 requests are in flight: 429 names seconds."""
    server.answer = answer(429, b'{"error": "rate_limit", "message": "slow down", "retry_after": 5}')

    with pytest.raises(RateLimited) as raised:
        provider_at("bfl", server.server_port).submit(order("flux-2-pro"))

    assert raised.value.retry_after == 5
