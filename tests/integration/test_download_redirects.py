"""Redirects of a hostile server: each hop is checked anew."""

import time

import pytest

from moorage.errors import DownloadRefused
from tests.integration.hostile_server import PNG, Server, failure, fetch, ok, says


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


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
    """The allow-list is checked for every hop, with the URL exactly as requested."""
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
    bomb = lambda: server.pause(30)  # noqa: E731
    server.answers["/"] = says(
        "HTTP/1.1 302 Found\nLocation: /b\nContent-Length: 9999999\nContent-Encoding: gzip\n", bomb
    )
    server.answers["/b"] = ok(PNG)
    started = time.monotonic()

    assert fetch(server, "/")[1] == PNG

    assert time.monotonic() - started < 15
