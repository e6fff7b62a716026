"""Requests of strangers: unfinished bodies, bodies that trickle, headers that no signature can fit."""

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from embedded.postgres import Postgres
from tests.integration import receiver_process as rp

MAX_BODY = 2**20
IN_FLIGHT = 4 * MAX_BODY
BODY = b"x" * 10_000
HEAD = "POST /webhooks/replicate HTTP/1.1\r\nHost: moorage\r\n"
# Well-formed and recent: only the body shows that no secret made the signature.
FORGED = {"webhook-id": "msg_forged", "webhook-signature": "v1," + "A" * 43 + "="}
DECLARED = f"Content-Length: {MAX_BODY}\r\n"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with rp.server(tmp_path_factory.mktemp("attacks")) as server:
        yield server


@pytest.fixture(scope="module")
def receiver(postgres: Postgres) -> Iterator[rp.Receiver]:
    sizes = {"MOORAGE_DEV_BYTES_IN_FLIGHT": str(IN_FLIGHT), "MOORAGE_WEBHOOK_MAX_BYTES": str(MAX_BODY)}
    with rp.running(postgres.url(), **sizes) as process:
        yield process


def lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def forged() -> str:
    return lines({**FORGED, "webhook-timestamp": str(int(time.time()))})


def attack(receiver: rp.Receiver, held: contextlib.ExitStack, kind: str) -> None:
    """Open a connection that sends nearly a whole body, and never its end."""
    conn = held.enter_context(receiver.connect())
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind == "chunked":
        conn.sendall(f"{HEAD}{forged()}Transfer-Encoding: chunked\r\n\r\n{MAX_BODY:x}\r\n".encode())
        conn.sendall(b"x" * (MAX_BODY - 1))
    elif kind == "small":
        conn.sendall(f"{HEAD}{forged()}Content-Length: 60001\r\n\r\n".encode() + b"x" * 60_000)
    else:
        conn.sendall(f"{HEAD}{forged()}{DECLARED}\r\n".encode() + b"x" * (MAX_BODY - 1000))
    if kind == "trickling":
        stop = threading.Event()
        thread = threading.Thread(target=trickle, args=(conn, stop))
        thread.start()
        held.callback(thread.join)
        held.callback(stop.set)


def trickle(conn: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):  # the receiver ended the connection
        while not stop.wait(0.05):
            conn.sendall(b"x")


@pytest.mark.parametrize(("kind", "connections"), [("silent", 8), ("chunked", 8), ("trickling", 8), ("small", 90)])
def test_unfinished_bodies_keep_nobody_out(receiver: rp.Receiver, kind: str, connections: int) -> None:
    """Their bytes together are above the limit; valid webhooks are small, and accepted while it lasts."""
    with contextlib.ExitStack() as held:
        for _ in range(connections):
            attack(receiver, held, kind)
        started = time.monotonic()
        statuses = [receiver.post(BODY, webhook_id=f"msg_{secrets.token_hex(8)}")[0] for _ in range(20)]
        took = time.monotonic() - started

    assert statuses == [202] * 20, took
    assert took < 60


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", 401),  # no signature at all
        (lines({**FORGED, "webhook-timestamp": "1614265330"}), 401),  # years old
        (lines({**FORGED, "webhook-timestamp": "soon"}), 401),
        (lines({"webhook-id": "a.b", "webhook-signature": "v1,x", "webhook-timestamp": "1"}), 401),
    ],
)
def test_what_needs_no_body_is_answered_without_reading_it(receiver: rp.Receiver, headers: str, status: int) -> None:
    """The answer comes while the body has not: nothing is held for a request that cannot be genuine."""
    with receiver.connect() as conn:
        conn.sendall(f"{HEAD}{headers}{DECLARED}\r\n".encode())

        assert rp.read_reply(conn).startswith(str(status).encode())


def test_a_declared_size_above_the_limit_is_refused_without_reading_it(receiver: rp.Receiver) -> None:
    with receiver.connect() as conn:
        conn.sendall(f"{HEAD}{forged()}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode())

        assert rp.read_reply(conn).startswith(b"413")


@pytest.mark.parametrize("path", ["/webhooks/replicate", "/healthz"])
@pytest.mark.parametrize("hosts", ["", "Host: a\r\nHost: b\r\n"])
def test_a_request_names_one_host(receiver: rp.Receiver, path: str, hosts: str) -> None:
    """A proxy may have routed by another of two; a missing one is no request that a client sends."""
    with receiver.connect() as conn:
        conn.sendall(f"GET {path} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())
        reply = rp.read_reply(conn)

    assert reply.startswith(b"400")
    assert (
        not reply[4:] or "Host" in json.loads(reply[4:])["detail"]
    )  # the server itself may answer first, without a body
