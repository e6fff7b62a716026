"""Downloads from a hostile server: what ends how, with which facts, and that nothing half-done gets out."""

import contextlib
import gc
import hashlib
import itertools
import os
import resource
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from moorage.errors import DiskFull, DownloadInterrupted, DownloadRefused, LeaseLost, OutputGone
from tasks import download
from tasks.egress import Egress
from tasks.limits import Limits

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
FAST = Limits(connect_seconds=2, idle_seconds=2, total_seconds=20, max_redirects=2)


class Server:
    """A server that speaks exactly the bytes a test wants; each path is a function of the connection."""

    def __init__(self, tls=None):
        self.answers, self.requests, self._tls = {}, [], tls
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self.port = self._socket.getsockname()[1]
        self._threads[0].start()

    def url(self, path):
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}{path}"

    def pause(self, seconds):
        """Wait as a slow server does, but not past the end of the test."""
        self._closing.wait(seconds)

    def close(self):
        if self._closing.is_set():
            return
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self):
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                conn, _ = self._socket.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(conn,)))
                self._threads[-1].start()

    def _serve(self, conn):
        with contextlib.suppress(OSError), conn:
            conn.settimeout(10)
            with self._tls.wrap_socket(conn, server_side=True) if self._tls else conn as stream:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    received = stream.recv(1)
                    if not received:
                        return
                    head += received
                self.requests.append(head.decode("latin-1"))
                self.answers[head.split(b" ")[1].decode("latin-1")](stream)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def says(head, *parts):
    def answer(stream):
        stream.sendall(head.encode("latin-1").replace(b"\n", b"\r\n") + b"\r\n")
        for part in parts:
            part() if callable(part) else stream.sendall(part)

    return answer


def ok(body, extra=""):
    return says(f"HTTP/1.1 200 OK\nContent-Type: image/png\nContent-Length: {len(body)}\n{extra}", body)


def chunk(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def fetch(server, path, *, limits=FAST, allows=lambda url: None, pulse=lambda: None, headers_for=lambda url: {}):
    session = Egress([f"127.0.0.1:{server.port}"]).session(limits)
    with (
        contextlib.closing(session),
        download.fetch(
            session, server.url(path), limits=limits, headers_for=headers_for, allows=allows, pulse=pulse
        ) as fetched,
    ):
        return fetched, fetched.file.read()


def failure(kind, server, path="/", **options):
    with pytest.raises(kind) as caught:
        fetch(server, path, **options)
    return caught.value


@pytest.mark.parametrize(
    "answer",
    [
        ok(PNG),
        says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", chunk(PNG[:1000]), chunk(PNG[1000:]), b"0\r\n\r\n"),
        says("HTTP/1.1 200 OK\nConnection: close\n", PNG),
        says("HTTP/1.0 200 OK\n", PNG),
        ok(PNG, "Content-Encoding: identity\n"),
    ],
    ids=["length", "chunked", "close", "http/1.0", "identity"],
)
def test_a_whole_body_arrives_hashed_and_at_its_start(server, answer):
    """The three ways in which HTTP ends a body."""
    server.answers["/"] = answer

    fetched, data = fetch(server, "/")

    assert data == PNG
    assert (fetched.bytes, fetched.sha256) == (len(PNG), hashlib.sha256(PNG).hexdigest())
    assert fetched.file.closed
    assert "Accept-Encoding: identity" in server.requests[0]
    assert f"Host: localhost:{server.port}" in server.requests[0]


@pytest.mark.parametrize(
    "answer",
    [
        says(f"HTTP/1.1 200 OK\nContent-Length: {len(PNG) + 1}\n", PNG),
        says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", chunk(PNG[:1000]), b"fff\r\n", PNG[1000:1100]),
        says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", chunk(PNG)),
        says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", b"zz\r\nrubbish"),
        says("HTTP/1.1 200 OK\nConnection: close\n"),
        lambda stream: None,
        lambda stream: stream.sendall(b"SSH-2.0-OpenSSH\r\n"),
        lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
        says("HTTP/1.1 206 Partial\nContent-Length: 3\n", b"abc"),
        says("HTTP/1.1 302 Found\nContent-Length: 0\n"),
    ],
    ids=["short", "cut chunk", "no last chunk", "bad chunk", "empty", "no answer", "not http",
         "long header", "partial", "no location"],
)  # fmt: skip
def test_a_broken_answer_is_tried_again(server, answer):
    """Half a file must never look like a file, and a broken line is no reason to give up."""
    server.answers["/"] = answer

    error = failure(DownloadInterrupted, server)

    assert error.retryable
    assert {"url", "status", "bytes", "expected", "seconds"} <= set(error.facts)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # urllib3 leaves this one to the collector
def test_two_lengths_are_tried_again(server):
    """Two readers of such an answer see two bodies."""
    server.answers["/"] = says("HTTP/1.1 200 OK\nContent-Length: 5, 6\n", PNG)

    failure(DownloadInterrupted, server)
    gc.collect()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_dead_url_is_told_apart(server, status):
    """The provider is then asked once for a fresh URL."""
    server.answers["/"] = says(f"HTTP/1.1 {status} No\nContent-Length: 0\n")

    assert failure(OutputGone, server).facts["status"] == status


@pytest.mark.parametrize("status", [400, 402, 405, 416, 451])
def test_any_other_refusal_of_the_server_is_final(server, status):
    """Asking again the same way gives the same answer."""
    server.answers["/"] = says(f"HTTP/1.1 {status} No\nContent-Length: 0\n")

    assert failure(DownloadRefused, server).facts["status"] == status


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_a_busy_server_is_asked_again(server, status):
    """Rate limits and failures pass."""
    server.answers["/"] = says(f"HTTP/1.1 {status} Busy\nContent-Length: 0\n")

    error = failure(DownloadInterrupted, server)

    assert (error.facts["status"], error.retry_after) == (status, None)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("999999", 3600, 3600),
        (format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True), 900, 1000),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0),
        (format_datetime(datetime.now(UTC) + timedelta(days=900), usegmt=True), 3600, 3600),
    ],
    ids=["seconds", "zero", "long", "date", "past", "far"],
)
def test_both_forms_of_retry_after_are_honoured(server, value, low, high):
    """A provider that says when to come back is not asked before, nor believed for longer than an hour."""
    server.answers["/"] = says(f"HTTP/1.1 429 Busy\nRetry-After: {value}\nContent-Length: 0\n")

    assert low <= failure(DownloadInterrupted, server).retry_after <= high


@pytest.mark.parametrize("value", ["soon", "-5", "1e9", "inf", "", "9" * 40])
def test_a_rubbish_retry_after_counts_as_none(server, value):
    """A header is written by anyone."""
    server.answers["/"] = says(f"HTTP/1.1 503 Busy\nRetry-After: {value}\nContent-Length: 0\n")

    assert failure(DownloadInterrupted, server).retry_after is None


def test_redirects_are_followed_with_headers_of_their_own(server):
    """A token belongs to the hosts it was given for, not to where they point."""
    server.answers["/a"] = says("HTTP/1.1 302 Found\nLocation: /b?x=1\nContent-Length: 0\n")
    server.answers["/b?x=1"] = says(f"HTTP/1.1 307 Go\nLocation: {server.url('/c')}\nContent-Length: 3\n", b"abc")
    server.answers["/c"] = ok(PNG)

    _, data = fetch(server, "/a", headers_for=lambda url: {"Authorization": "Bearer x"} if url.endswith("/a") else {})

    assert data == PNG
    assert ["Authorization" in request for request in server.requests] == [True, False, False]


def test_redirects_are_counted(server):
    """A loop of redirects must end."""
    server.answers["/"] = says("HTTP/1.1 302 Found\nLocation: /\nContent-Length: 0\n")

    assert "more than 2 redirects" in str(failure(DownloadRefused, server))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://127.0.0.1:1/x", "loopback"),
        ("http://[::ffff:169.254.169.254]/latest", "cloud metadata"),
        ("http://10.0.0.1/x", "private"),
        ("http://0/x", "this network"),
        ("file:///etc/passwd", "only http"),
        ("ftp://example.com/x", "only http"),
        ("gopher:x", "only http"),
        ("http://[::1", "URL"),
        ("http://localhost:99999/", "URL"),
        ("http://a" + "b" * 70 + ".example/", "name"),
    ],
)
def test_a_redirect_to_where_nothing_may_be_fetched_is_refused(server, target, reason):
    """The first host is the provider's; a redirect leads anywhere."""
    server.answers["/"] = says(f"HTTP/1.1 302 Found\nLocation: {target}\nContent-Length: 0\n")

    assert reason in str(failure(DownloadRefused, server))


def test_a_redirect_to_a_host_that_is_not_allowed_is_refused(server):
    """The allow-list is asked for every hop, with the URL as it will be requested."""
    server.answers["/"] = says(
        r"HTTP/1.1 302 Found" "\n" r"Location: http://127.0.0.1\@cdn.example/x" "\nContent-Length: 0\n"
    )
    seen = []

    def allows(url):
        seen.append(url)
        return None if len(seen) == 1 else "host is not allowed"

    assert str(failure(DownloadRefused, server, allows=allows)) == "host is not allowed"
    assert seen[1].startswith("http://127.0.0.1/")


def test_the_body_of_a_redirect_is_not_read(server):
    """A session of the library would read it to its end, unpacked."""
    bomb = lambda: server.pause(10)  # noqa: E731
    server.answers["/"] = says(
        "HTTP/1.1 302 Found\nLocation: /b\nContent-Length: 9999999\nContent-Encoding: gzip\n", bomb
    )
    server.answers["/b"] = ok(PNG)
    started = time.monotonic()

    assert fetch(server, "/")[1] == PNG

    assert time.monotonic() - started < 2


def test_an_encoded_body_is_refused(server):
    """It was not asked for, and some kilobytes unpack to gigabytes."""
    server.answers["/"] = ok(b"\x1f\x8b" + bytes(100), "Content-Encoding: gzip\n")

    assert "gzip" in str(failure(DownloadRefused, server))


SMALL = Limits(image_max_bytes=5000, video_max_bytes=8000, idle_seconds=2, connect_seconds=2)


@pytest.mark.parametrize(
    ("answer", "got_at_most"),
    [
        (says("HTTP/1.1 200 OK\nContent-Length: 8001\n", PNG), 0),
        (says("HTTP/1.1 200 OK\nContent-Length: 5001\n", PNG[:600]), 5000),
        (says("HTTP/1.1 200 OK\nConnection: close\n", PNG), 200_000),
        (says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n", chunk(PNG), b"0\r\n\r\n"), 200_000),
    ],
    ids=["announced", "announced for its kind", "close", "chunked"],
)
def test_a_file_that_is_too_large_is_refused(server, answer, got_at_most):
    """With an announced length nothing, or only the first bytes, are read."""
    server.answers["/"] = answer

    error = failure(DownloadRefused, server, limits=SMALL)

    assert "too large" in str(error)
    assert error.facts["limit"] in (5000, 8000)
    assert error.facts["bytes"] <= got_at_most


def test_a_video_may_be_larger_than_a_picture(server):
    """The cap is that of the kind, known from the first bytes."""
    body = b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(7000)
    server.answers["/"] = ok(body)

    assert fetch(server, "/", limits=SMALL)[1] == body


def test_a_silent_server_is_given_up_and_the_pulse_goes_on(server):
    """While nothing comes the worker still hears that it must stop."""
    server.answers["/"] = says("HTTP/1.1 200 OK\nContent-Length: 100\n", b"abc", lambda: server.pause(10))
    beats = []

    error = failure(DownloadInterrupted, server, pulse=lambda: beats.append(time.monotonic()))

    assert 1.9 < error.facts["seconds"] < 4
    assert max(b - a for a, b in itertools.pairwise(beats)) < 1.5


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

    def drip(stream):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(200):
            stream.sendall(b"x")
            server.pause(0.05)

    server.answers["/"] = drip

    error = failure(DownloadInterrupted, server, limits=Limits(slow_after_seconds=0.5))

    assert "slower than" in str(error)
    assert error.facts["seconds"] < 3


def test_a_drip_of_headers_is_given_up(server):
    """The whole download has one clock, from the first connection."""

    def drip(stream):
        for _ in range(200):
            stream.sendall(b"H")
            server.pause(0.05)

    server.answers["/"] = drip

    error = failure(DownloadInterrupted, server, limits=Limits(total_seconds=0.5))

    assert "not done within 0.5 s" in str(error)
    assert error.facts["seconds"] < 2


@pytest.mark.parametrize("at", [1, 3, 8])
def test_what_the_pulse_raises_ends_the_download(server, at):
    """A lost lease or a stop of the worker comes through, and nothing stays open."""
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


def test_a_full_disk_is_ours_and_not_the_url_s(server):
    """The file is good and will be fetched again when there is room."""
    server.answers["/"] = ok(PNG[:8] + bytes(300_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        error = failure(DiskFull, server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert error.ours
    assert error.retryable


def test_a_missing_temporary_folder_is_ours(server, monkeypatch):
    """A mount that is gone must not cost outputs."""
    server.answers["/"] = ok(PNG)
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")

    assert failure(DiskFull, server).ours


def test_an_unreachable_server_is_tried_again(server):
    """A closed port is an outage."""
    port = server.port
    server.close()
    session = Egress([f"127.0.0.1:{port}"]).session(FAST)

    with (
        pytest.raises(DownloadInterrupted, match="ConnectionRefused"),
        download.fetch(
            session,
            f"http://127.0.0.1:{port}/",
            limits=FAST,
            headers_for=lambda url: {},
            allows=lambda url: None,
            pulse=lambda: None,
        ),
    ):
        pass


def test_an_error_inside_the_block_stays_what_it_is(server):
    """Only the download is translated, not what is done with the file."""
    server.answers["/"] = ok(PNG)
    session = Egress([f"127.0.0.1:{server.port}"]).session(FAST)

    with (
        pytest.raises(OSError, match="mine"),
        download.fetch(
            session,
            server.url("/"),
            limits=FAST,
            headers_for=lambda url: {},
            allows=lambda url: None,
            pulse=lambda: None,
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


def test_tls_is_verified_by_name_and_waits_in_steps(tls_server, certificate, monkeypatch):
    """The certificate is checked for the URL's name although the guard chose the address."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(PNG)}\n"
    tls_server.answers["/"] = says(head, PNG[:100], lambda: tls_server.pause(1.4), PNG[100:])
    beats = []

    _, data = fetch(tls_server, "/", pulse=lambda: beats.append(time.monotonic()))

    assert data == PNG
    assert max(b - a for a, b in itertools.pairwise(beats)) < 1.3


def test_an_unknown_certificate_is_not_trusted(tls_server):
    """No setting turns verification off."""
    tls_server.answers["/"] = ok(PNG)

    assert "CERTIFICATE_VERIFY_FAILED" in str(failure(DownloadInterrupted, tls_server))
    assert tls_server.requests == []


def test_a_connection_is_used_again_and_a_dropped_one_replaced(server):
    """Outputs of one job lie on one host; each new connection is checked anew."""
    accepted = []

    def twice(stream):
        accepted.append(1)
        ok(PNG)(stream)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.recv(1) or b"\r\n\r\n"
        ok(PNG)(stream)

    server.answers["/"] = twice
    session = Egress([f"127.0.0.1:{server.port}"]).session(FAST)
    with contextlib.closing(session), warnings.catch_warnings():
        for _ in range(3):
            with download.fetch(
                session, server.url("/"), limits=FAST, headers_for=lambda url: {}, allows=lambda url: None,
                pulse=lambda: None,
            ) as fetched:  # fmt: skip
                assert fetched.bytes == len(PNG)

    assert len(accepted) == 2


def test_chunks_from_storage_take_the_same_form():
    """A local file that was put into our bucket first goes the same way as a download."""
    beats = []

    with download.from_chunks(iter([PNG[:5], PNG[5:]]), FAST, lambda: beats.append(1)) as fetched:
        assert fetched.file.read() == PNG
        assert fetched.sha256 == hashlib.sha256(PNG).hexdigest()

    assert len(beats) == 2
    with pytest.raises(DownloadRefused, match="too large"), download.inline(PNG, SMALL):
        pass
