"""A server that speaks exactly the bytes a test wants, and a download from it."""

import contextlib
import socket
import threading

import pytest

from egress import download
from egress.guard import EgressGuard
from media.limits import Limits

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
FAST = Limits(connect_seconds=20, idle_seconds=20, total_seconds=60, max_redirects=2)  # a busy computer may stand still


class Server:
    """A server that sends exactly the bytes of a test; each path is a function of the connection."""

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


def says(head, *parts):
    """An answer: the head as lines, then parts that are bytes to send or things to do."""

    def answer(stream):
        stream.sendall(head.encode("latin-1").replace(b"\n", b"\r\n") + b"\r\n")
        for part in parts:
            part() if callable(part) else stream.sendall(part)

    return answer


def ok(body, extra=""):
    """An answer with a body and its length."""
    return says(f"HTTP/1.1 200 OK\nContent-Type: image/png\nContent-Length: {len(body)}\n{extra}", body)


def chunk(data):
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def drip(server):
    """Answer with the head of a large file, and then a byte now and then."""

    def answer(stream):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(200):
            stream.sendall(b"x")
            server.pause(0.05)

    return answer


def fetch(
    server, path, *, limits=FAST, allows=lambda url: None, pulse=lambda: None, headers_for=lambda url: {}, session=None
):
    """Download a path of the server; returns what was fetched and its bytes."""
    own = None if session else EgressGuard([f"127.0.0.1:{server.port}"]).new_session(limits)
    with (
        contextlib.closing(own) if own else contextlib.nullcontext(),
        download.download_url(
            session or own,
            server.url(path),
            limits=limits,
            headers_for=headers_for,
            check_url=allows,
            on_progress=pulse,
        ) as fetched,
    ):
        return fetched, fetched.file.read()


def failure(kind, server, path="/", **options):
    """Return the error of the expected kind that a download ends with."""
    with pytest.raises(kind) as caught:
        fetch(server, path, **options)
    return caught.value
