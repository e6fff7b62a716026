"""Downloads from a hostile server: what each answer ends as, and that nothing half-done gets out."""

import gc
import hashlib
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from egress import download
from egress.guard import EgressGuard
from moorage.errors import DownloadInterrupted, DownloadRefused, OutputGone
from tests.integration.hostile_server import FAST, PNG, Server, chunk, failure, fetch, ok, says


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


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
    assert (fetched.size_bytes, fetched.sha256) == (len(PNG), hashlib.sha256(PNG).hexdigest())
    assert fetched.file.closed
    assert "Accept-Encoding: identity" in server.requests[0]
    assert f"Host: localhost:{server.port}" in server.requests[0]


def test_a_kept_connection_that_the_server_closes_is_replaced(server):
    """It may close an idle one at the very moment of the next request: not a fault of the file."""

    def answer_once(stream):
        ok(PNG)(stream)
        if len(server.requests) == 1:
            server.requests.append(stream.recv(65536).decode())  # the next request on this connection

    server.answers["/"] = answer_once
    session = EgressGuard([f"127.0.0.1:{server.port}"]).new_session(FAST)

    bodies = [fetch(server, "/", session=session)[1] for _ in range(2)]
    session.close()

    assert bodies == [PNG, PNG]
    assert [request.split()[:2] for request in server.requests] == [["GET", "/"]] * 3


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
def test_an_expired_url_is_distinguished(server, status):
    """A fresh URL is then requested from the provider once."""
    server.answers["/"] = says(f"HTTP/1.1 {status} No\nContent-Length: 0\n")

    assert failure(OutputGone, server).facts["status"] == status


@pytest.mark.parametrize("status", [400, 402, 405, 416, 451])
def test_any_other_refusal_of_the_server_is_final(server, status):
    """Asking again the same way gives the same answer."""
    server.answers["/"] = says(f"HTTP/1.1 {status} No\nContent-Length: 0\n")

    assert failure(DownloadRefused, server).facts["status"] == status


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_a_busy_server_is_retried(server, status):
    """Rate limits and failures pass."""
    server.answers["/"] = says(f"HTTP/1.1 {status} Busy\nContent-Length: 0\n")

    error = failure(DownloadInterrupted, server)

    assert (error.facts["status"], error.retry_after) == (status, None)
    assert error.event_kind == "source_unavailable"


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("999999", 3600, 3600),
        (timedelta(seconds=1000), 800, 1000),
        (timedelta(days=-1), 0, 0),
        (timedelta(days=900), 3600, 3600),
    ],
    ids=["seconds", "zero", "long", "date", "past", "far"],
)
def test_both_forms_of_retry_after_are_honoured(server, value, low, high):
    """Retry-After is honoured, up to one hour."""
    if isinstance(value, timedelta):
        value = format_datetime(datetime.now(UTC) + value, usegmt=True)
    server.answers["/"] = says(f"HTTP/1.1 429 Busy\nRetry-After: {value}\nContent-Length: 0\n")

    assert low <= failure(DownloadInterrupted, server).retry_after <= high


@pytest.mark.parametrize("value", ["soon", "-5", "1e9", "inf", "", "9" * 40])
def test_a_rubbish_retry_after_counts_as_none(server, value):
    """A header is written by anyone."""
    server.answers["/"] = says(f"HTTP/1.1 503 Busy\nRetry-After: {value}\nContent-Length: 0\n")

    assert failure(DownloadInterrupted, server).retry_after is None


SMALL = replace(FAST, image_max_bytes=5000, video_max_bytes=8000)


def compressed(data, encoding):
    form = {"gzip": 31, "x-gzip": 31, "deflate": 15, "raw deflate": -15}[encoding]
    packer = zlib.compressobj(9, zlib.DEFLATED, form)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", compressed(PNG, "gzip")),
        (" GZip ", compressed(PNG, "gzip")),
        ("x-gzip", compressed(PNG, "gzip")),
        ("gzip", compressed(PNG[:99], "gzip") + compressed(PNG[99:], "gzip")),
        ("gzip", compressed(PNG, "gzip") + bytes(512)),
        ("deflate", compressed(PNG, "deflate")),
        ("deflate", compressed(PNG, "raw deflate")),
        ("deflate, gzip", compressed(compressed(PNG, "deflate"), "gzip")),
        ("aws-chunked,gzip", compressed(PNG, "gzip")),
        *((name, PNG) for name in ("gzip", "deflate", "aws-chunked", "binary", "utf-8", "UTF-8", "none", "", "bogus",
                                   "identity, identity", "base64", "image/png")),
    ],
)  # fmt: skip
def test_an_encoding_is_decoded_or_is_none(server, encoding, body):
    """Storage keeps whatever name an uploader wrote; browsers show these files."""
    server.answers["/"] = ok(body, f"Content-Encoding: {encoding}\n")

    fetched, data = fetch(server, "/")

    assert data == PNG
    assert (fetched.size_bytes, fetched.sha256) == (len(PNG), hashlib.sha256(PNG).hexdigest())


def test_an_encoded_body_may_arrive_byte_by_byte_and_in_chunks(server):
    """The form of a body is known from its first bytes, however they are cut."""
    body = compressed(PNG, "raw deflate")
    head = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Encoding: deflate\n"
    server.answers["/"] = says(head, *(chunk(body[at : at + 1]) for at in range(len(body))), b"0\r\n\r\n")

    assert fetch(server, "/")[1] == PNG


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "compress"])
def test_an_encoding_that_is_not_decoded_is_tried_again_and_named(server, encoding):
    """Another node of the content network may honour the request for identity."""
    server.answers["/"] = ok(PNG, f"Content-Encoding: {encoding}\n")

    assert encoding.rpartition(" ")[2] in str(failure(DownloadInterrupted, server))


@pytest.mark.parametrize(
    "body", [compressed(PNG, "gzip")[:-9], compressed(PNG, "gzip")[:40], b"\x1f\x8b" + bytes(600)],
    ids=["no end", "cut", "damaged"],
)  # fmt: skip
def test_an_encoded_body_that_is_damaged_is_tried_again(server, body):
    """Its length was right, its content is not."""
    server.answers["/"] = ok(body, "Content-Encoding: gzip\n")

    assert "encoded body" in str(failure(DownloadInterrupted, server))


def test_a_body_that_decompresses_to_any_size_ends_at_the_limit(server):
    """A few kilobytes may become gigabytes."""
    body = compressed(PNG[:8] + bytes(20_000_000), "gzip")
    server.answers["/"] = ok(body, "Content-Encoding: gzip\n")

    error = failure(DownloadRefused, server, limits=SMALL)

    assert "too large" in str(error)
    assert error.facts["bytes"] < 500_000


@pytest.mark.parametrize("status", [200, 201, 203, 207, 208, 218, 299])
def test_a_success_is_a_file(server, status):
    """A browser shows the body of any of them; the decoder decides."""
    server.answers["/"] = says(f"HTTP/1.1 {status} Yes\nContent-Length: {len(PNG)}\n", PNG)

    assert fetch(server, "/")[1] == PNG


@pytest.mark.parametrize("status", [202, 204, 205, 226])
def test_a_success_without_the_file_is_tried_again(server, status):
    """Accepted is not ready; the others have no content, or a difference."""
    server.answers["/"] = says(f"HTTP/1.1 {status} Yes\nRetry-After: 3\nContent-Length: 0\n")

    assert failure(DownloadInterrupted, server).retry_after == 3


@pytest.mark.parametrize("length", [f"Content-Length: {len(PNG)}\n", "Connection: close\n"])
def test_a_range_of_the_whole_file_is_the_file(server, length):
    """Some content networks answer 206 to everything."""
    whole = f"Content-Range: bytes 0-{len(PNG) - 1}/{len(PNG)}\n"
    server.answers["/"] = says(f"HTTP/1.1 206 Partial\n{whole}{length}", PNG)

    assert fetch(server, "/")[1] == PNG


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-99/10248",
        "bytes 1-10247/10248",
        "bytes 0-10247/*",
        "bytes */10248",
        "bytes 0-20000/20001",
        "pages 0-1/2",
    ],
)
def test_a_range_of_a_part_is_tried_again(server, content_range):
    """Half a file must never look like a file."""
    head = f"HTTP/1.1 206 Partial\nContent-Range: {content_range}\nContent-Length: {len(PNG)}\n"
    server.answers["/"] = says(head, PNG)

    failure(DownloadInterrupted, server)


def test_interim_responses_are_read_past(server):
    """Early hints precede the file of several content networks."""
    interim = b"".join(b"HTTP/1.1 %d Wait\r\nLink: </a.css>\r\n\r\n" % status for status in (100, 102, 103, 103, 199))
    server.answers["/"] = lambda stream: (stream.sendall(interim), ok(PNG)(stream))

    assert fetch(server, "/")[1] == PNG


@pytest.mark.parametrize("target", ["/%7Ea%2Db%e4.png?sig=a%2fb%3D&x=", "/a//b/../c?", "/[a]|b;?'x'"])
def test_the_url_is_sent_byte_for_byte(server, target):
    """A signature may cover the text of the URL; whitespace around it is not part of it."""
    server.answers[target] = ok(PNG)

    assert fetch(server, f"{target} \n")[1] == PNG
    assert server.requests[0].startswith(f"GET {target} HTTP/1.1\r\n")


def test_a_redirect_is_followed_byte_for_byte(server):
    """The signed URL is often the second one; a raw byte of its path is escaped, not recoded."""
    server.answers["/a/b"] = says("HTTP/1.1 302 Found\nLocation: ../%7e\xe9;?sig=%2f\nContent-Length: 0\n")
    server.answers["/%7e%E9;?sig=%2f"] = ok(PNG)

    assert fetch(server, "/a/b")[1] == PNG


def test_only_what_cannot_stand_in_a_request_line_is_escaped(server):
    """The check of the URL sees what is sent."""
    server.answers["/a%20b/%C3%A4"] = ok(PNG)
    checked = []

    assert fetch(server, "/a b/ä#part", allows=checked.append)[1] == PNG
    assert checked == [server.url("/a%20b/%C3%A4")]


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

    setting = {5000: "MOORAGE_IMAGE_MAX_BYTES", 8000: "MOORAGE_VIDEO_MAX_BYTES"}[error.facts["limit"]]
    assert str(error).startswith("too large: ")
    assert str(error).endswith(f"the limit is {error.facts['limit']} ({setting})")
    assert error.facts["bytes"] <= got_at_most


def test_text_has_the_limit_of_other_files(server):
    """It has no signature; its limit was that of images."""
    server.answers["/out.txt"] = ok(b"a transcript " * 500)

    assert len(fetch(server, "/out.txt", limits=SMALL)[1]) == 6500


def test_a_video_may_be_larger_than_a_picture(server):
    """The cap is that of the kind, known from the first bytes."""
    body = b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(7000)
    server.answers["/"] = ok(body)

    assert fetch(server, "/", limits=SMALL)[1] == body


def test_chunks_from_storage_take_the_same_form():
    """A local file that was put into our bucket first goes the same way as a download."""
    beats = []

    with download.spool_chunks(iter([PNG[:5], PNG[5:]]), FAST, lambda: beats.append(1)) as fetched:
        assert fetched.file.read() == PNG
        assert fetched.sha256 == hashlib.sha256(PNG).hexdigest()

    assert len(beats) == 2
    with pytest.raises(DownloadRefused, match="too large"), download.spool_bytes(PNG, SMALL):
        pass
