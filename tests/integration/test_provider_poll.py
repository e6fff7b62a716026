"""Polling Replicate over HTTP: what each answer of a real server amounts to."""

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler

import pytest

from moorage.errors import ProviderRefused, ProviderUnavailable
from providers import Provider, api_client
from tests.integration.provider_server import TOKENS, Server, answer, provider_at, running

TOKEN = TOKENS["replicate"]
GOOD = json.dumps({"id": "p1", "status": "succeeded", "output": ["https://replicate.delivery/a.png"]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        one.answer = answer(200, GOOD)
        yield one


def replicate(port: int, **given: object) -> Provider:
    return provider_at("replicate", port, **given)


@pytest.fixture
def provider(server: Server) -> Provider:
    return replicate(server.server_port)


def test_a_poll_sends_the_token_and_reads_the_prediction(server, provider):
    """The answer is the same object as a webhook's body, so it takes the same path."""
    report = provider.poll("p1")

    assert provider.can_poll
    assert (report.external_id, report.status, len(report.outputs)) == ("p1", "succeeded", 1)
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("GET", "/v1/predictions/p1")
    assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["Accept-Encoding"] == "identity"


def test_polls_share_a_connection(server, provider):
    """A connection a poll would cost a TLS handshake each, thousands of times."""
    for _ in range(3):
        provider.poll("p1")

    assert server.connections == 1


@pytest.mark.parametrize(
    ("external_id", "path"),
    [
        ("a/b?c#d", "/v1/predictions/a%2Fb%3Fc%23d"),
        ("../x", "/v1/predictions/..%2Fx"),
        ("é\ud800", "/v1/predictions/%C3%A9%3F"),
    ],
)
def test_an_id_is_one_step_of_the_path(server, provider, external_id, path):
    """An id is application input: it must not reach another endpoint with our token."""
    with pytest.raises(ProviderUnavailable, match="about p1"):
        provider.poll(external_id)

    assert server.asked[0].path == path


@pytest.mark.parametrize("external_id", ["", ".", ".."])
def test_an_id_that_is_not_a_path_segment_is_not_requested(server, provider, external_id):
    """These would list predictions, or leave the folder."""
    with pytest.raises(ProviderRefused):
        provider.poll(external_id)

    assert server.asked == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
def test_an_overloaded_provider_is_retried(server, provider, status):
    """Giving up would lose the result of a later poll."""
    server.answer = answer(status)

    with pytest.raises(ProviderUnavailable, match=str(status)) as raised:
        provider.poll("p1")

    assert raised.value.facts == {"status": status}
    assert raised.value.retry_after is None


@pytest.mark.parametrize("status", [204, 301, 302, 307, 400, 401, 402, 403, 404, 410, 418])
def test_a_refusal_is_final(server, provider, status):
    """Asking again does not help; a redirect is not followed, since the token would go along."""
    server.answer = answer(status, Location=f"http://127.0.0.1:{server.server_port}/elsewhere")

    with pytest.raises(ProviderRefused, match=str(status)):
        provider.poll("p1")

    assert len(server.asked) == 1


@pytest.mark.parametrize(("written", "seconds"), [("30", 30), ("1.5", 1.5), ("86400", 3600), ("soon", None)])
def test_retry_after_is_passed_on(server, provider, written, seconds):
    """Bounded: a wrong number of days must not outlast the files."""
    server.answer = answer(429, Retry_After=written)

    with pytest.raises(ProviderUnavailable) as raised:
        provider.poll("p1")

    assert raised.value.retry_after == seconds


@pytest.mark.parametrize(("ahead", "low", "high"), [(60, 50, 60), (-60, 0, 0)])
def test_the_wait_may_be_a_date(server, provider, ahead, low, high):
    """Both forms are HTTP; Replicate's own Python client cannot read this one."""
    server.answer = answer(503, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True))

    with pytest.raises(ProviderUnavailable) as raised:
        provider.poll("p1")

    assert low <= raised.value.retry_after <= high


@pytest.mark.parametrize("body", [b"", b"<html>maintenance</html>", b"[]", b'{"id": "p1"}', GOOD.replace(b"p1", b"p2")])
def test_a_200_that_is_not_the_prediction_is_retried(server, provider, body):
    """A proxy's page is no verdict on the prediction."""
    server.answer = answer(200, body)

    with pytest.raises(ProviderUnavailable):
        provider.poll("p1")


@pytest.mark.parametrize("extra", [1, 100])
def test_a_truncated_response_is_retried(server, provider, extra):
    """Half a JSON may even parse: what is short by a byte is not an answer."""

    def cut(request: BaseHTTPRequestHandler) -> None:
        answer(200, GOOD, Content_Length=str(len(GOOD) + extra))(request)
        request.close_connection = True

    server.answer = cut

    with pytest.raises(ProviderUnavailable, match="IncompleteRead"):
        provider.poll("p1")


def test_an_answer_above_the_limit_is_refused_without_being_read(server):
    """A worker's memory must not be the provider's to fill."""
    provider = replicate(server.server_port, webhook_max_bytes=1000)
    server.answer = answer(200, b" " * 2**24)

    with pytest.raises(ProviderRefused, match="more than 1000 bytes"):
        provider.poll("p1")


def test_a_provider_that_trickles_is_given_up(server, provider, monkeypatch):
    """Each byte restarts the read time-out: without a total a thread would hang, its lease renewed for ever."""
    monkeypatch.setattr(api_client, "TOTAL_SECONDS", 0.3)
    over = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> None:
        answer(200, b"", Content_Length="100000")(request)
        while not over.wait(0.02):
            request.wfile.write(b" ")

    server.answer = trickle
    with pytest.raises(ProviderUnavailable, match="did not end"):
        provider.poll("p1")
    over.set()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
def test_a_provider_that_falls_silent_is_given_up(server, monkeypatch, sent):
    """Before the answer or in the middle of it."""
    monkeypatch.setattr(api_client, "READ_SECONDS", 0.2)
    over = threading.Event()

    def fall_silent(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(sent)
        over.wait(30)

    server.answer = fall_silent
    with pytest.raises(ProviderUnavailable, match="timed out"):
        replicate(server.server_port).poll("p1")
    over.set()


def test_no_connection_is_a_failure_to_try_again():
    """The token is in no message."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        provider = replicate(taken.getsockname()[1])

        with pytest.raises(ProviderUnavailable, match="did not respond") as raised:
            provider.poll("p1")

    assert TOKEN not in str(raised.value)


def test_what_is_no_http_is_a_failure_to_try_again(provider, server):
    """A wrong port may speak anything."""
    server.answer = lambda request: request.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n" * 3)

    with pytest.raises(ProviderUnavailable, match="did not respond"):
        provider.poll("p1")


def test_the_environment_changes_neither_token_nor_way(server, tmp_path, monkeypatch):
    """A .netrc would replace the token, a proxy variable would disclose it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    replicate(server.server_port).poll("p1")

    assert server.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"
