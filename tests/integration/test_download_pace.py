"""Slow and silent servers, the pulse, the disk and TLS: how a download waits, and how it ends."""

import contextlib
import itertools
import os
import resource
import ssl
import subprocess
import tempfile
import time
from dataclasses import replace

import pytest

from egress import download, guard
from egress.guard import EgressGuard
from media.limits import Limits
from moorage.errors import DiskFull, DownloadInterrupted, LeaseLost
from tests.integration.hostile_server import FAST, PNG, Server, chunk, drip, failure, fetch, ok, says


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def test_a_silent_server_is_given_up_and_the_pulse_goes_on(server):
    """The worker can be stopped while no data arrives."""
    server.answers["/"] = says("HTTP/1.1 200 OK\nContent-Length: 100\n", b"abc", lambda: server.pause(30))
    beats = []

    limits = replace(FAST, idle_seconds=4)
    error = failure(DownloadInterrupted, server, limits=limits, pulse=lambda: beats.append(time.monotonic()))

    assert 3.9 < error.facts["seconds"] < 25
    assert max(b - a for a, b in itertools.pairwise(beats)) < 3.5  # a second, where nothing else is busy


@pytest.mark.parametrize("where", ["before the head", "within the head", "within a chunk size"])
def test_a_pause_shorter_than_the_limit_is_survived(server, where):
    """A wait in steps resumes; a time-out above the buffers could not."""
    wait = lambda: server.pause(1.4)  # noqa: E731
    head, body = b"HTTP/1.1 200 OK\r\nTransfer-Enc", b"oding: chunked\r\n\r\n"
    parts = {
        "before the head": [wait, head, body, chunk(PNG)],
        "within the head": [head, wait, body, chunk(PNG)],
        "within a chunk size": [head, body, chunk(PNG)[:2], wait, chunk(PNG)[2:]],
    }[where]

    def answer(stream):
        for part in [*parts, b"0\r\n\r\n"]:
            part() if callable(part) else stream.sendall(part)

    server.answers["/"] = answer

    assert fetch(server, "/")[1] == PNG


def test_a_slow_drip_is_given_up(server):
    """A byte now and then defeats an idle limit; the minimum speed does not sleep."""
    server.answers["/"] = drip(server)

    error = failure(DownloadInterrupted, server, limits=Limits(slow_after_seconds=0.5))

    assert "slower than" in str(error)
    assert error.facts["seconds"] < 9  # and not at the end of the drip


def test_a_drip_of_headers_is_given_up(server):
    """The whole download has one clock, from the first connection."""

    def drip(stream):
        for _ in range(200):
            stream.sendall(b"H")
            server.pause(0.05)

    server.answers["/"] = drip

    error = failure(DownloadInterrupted, server, limits=Limits(total_seconds=0.5))

    assert error.event_kind == "source_interrupted"
    assert "not done within 0.5 s" in str(error)
    assert error.facts["seconds"] < 9


@pytest.mark.parametrize("at", [1, 3, 8])
def test_what_the_pulse_raises_ends_the_download(server, at):
    """A lost lease or a shutdown interrupts it, and nothing stays open."""
    body = b"x" * 3_000_000
    server.answers["/"] = ok(body)
    beats = []

    def pulse():
        beats.append(1)
        if len(beats) == at:
            raise LeaseLost("another worker has it")

    before = len(os.listdir("/proc/self/fd"))
    failure(LeaseLost, server, pulse=pulse)

    assert len(beats) == at
    server.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_full_disk_is_an_internal_failure(server):
    """The file is good and will be fetched again when there is room."""
    server.answers["/"] = ok(PNG[:8] + bytes(300_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        error = failure(DiskFull, server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert error.is_internal
    assert error.retryable


def test_a_missing_temporary_folder_is_an_internal_failure(server, monkeypatch):
    """A mount that is gone must not cost outputs."""
    server.answers["/"] = ok(PNG)
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")

    assert failure(DiskFull, server).is_internal


def test_an_unreachable_server_is_tried_again(server):
    """A closed port is an outage."""
    port = server.port
    server.close()
    session = EgressGuard([f"127.0.0.1:{port}"]).new_session(FAST)

    with (
        pytest.raises(DownloadInterrupted, match="ConnectionRefused") as refused,
        download.download_url(
            session,
            f"http://127.0.0.1:{port}/",
            limits=FAST,
            headers_for=lambda url: {},
            check_url=lambda url: None,
            on_progress=lambda: None,
        ),
    ):
        pass
    assert refused.value.event_kind == "source_interrupted"


def test_an_error_inside_the_block_stays_what_it_is(server):
    """Only the download is translated, not what is done with the file."""
    server.answers["/"] = ok(PNG)
    session = EgressGuard([f"127.0.0.1:{server.port}"]).new_session(FAST)

    with (
        pytest.raises(OSError, match="mine"),
        download.download_url(
            session,
            server.url("/"),
            limits=FAST,
            headers_for=lambda url: {},
            check_url=lambda url: None,
            on_progress=lambda: None,
        ) as fetched,
    ):
        raise OSError("mine")

    assert fetched.file.closed
    session.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out",
         folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(context)
    yield server
    server.close()


@pytest.fixture
def trusted(certificate, monkeypatch):
    """Trust the server's certificate in the one TLS context of the process."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    guard.load_tls_context.cache_clear()
    yield
    guard.load_tls_context.cache_clear()


def test_tls_is_verified_by_name_and_waits_in_steps(tls_server, trusted):
    """The certificate is checked for the URL's name although the guard chose the address."""
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(PNG)}\n"
    tls_server.answers["/"] = says(head, PNG[:100], lambda: tls_server.pause(3), PNG[100:])
    beats = []

    _, data = fetch(tls_server, "/", pulse=lambda: beats.append(time.monotonic()))

    assert data == PNG
    assert max(b - a for a, b in itertools.pairwise(beats)) < 2.9


def test_an_unknown_certificate_is_not_trusted(tls_server):
    """No setting turns verification off."""
    tls_server.answers["/"] = ok(PNG)

    assert "CERTIFICATE_VERIFY_FAILED" in str(failure(DownloadInterrupted, tls_server))
    assert tls_server.requests == []


def test_a_connection_is_used_again_and_a_dropped_one_replaced(server):
    """Outputs of one job are on one host; each new connection is checked."""
    accepted = []

    def twice(stream):
        accepted.append(1)
        ok(PNG)(stream)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.recv(1) or b"\r\n\r\n"
        ok(PNG)(stream)

    server.answers["/"] = twice
    session = EgressGuard([f"127.0.0.1:{server.port}"]).new_session(FAST)
    with contextlib.closing(session):
        for _ in range(3):
            with download.download_url(
                session, server.url("/"), limits=FAST, headers_for=lambda url: {}, check_url=lambda url: None,
                on_progress=lambda: None,
            ) as fetched:  # fmt: skip
                assert fetched.size_bytes == len(PNG)

    assert len(accepted) == 2
