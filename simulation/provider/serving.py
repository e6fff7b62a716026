"""Answers to requests for outputs, as their faults have it; needs the raw socket for what HTTP libraries refuse."""

import contextlib
import http.server
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from simulation.provider.faults import Act
from simulation.provider.ledger import Ledger
from simulation.provider.outputs import TOO_LARGE_BYTES, Output, Outputs
from simulation.provider.pictures import File

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)$")
_TRICKLE_S: Final = 600.0
_ZEROS: Final = bytes(65536)
_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time at all: close() sends RST


class Serving:
    """Serves outputs through a request handler and writes what was sent into the ledger."""

    def __init__(self, outputs: Outputs, ledger: Ledger, trap_url: str) -> None:
        self._outputs = outputs
        self._ledger = ledger
        self._trap_url = trap_url

    def answer(self, request: http.server.BaseHTTPRequestHandler, token: str) -> None:
        """Answer GET or HEAD for the output with this token, 404 when there is none now."""
        output = self._outputs.find(token)
        if output is None:
            _problem(request, 404)
            return
        acts = (Act("error", 404),) if output.expired else output.nature.acts
        # HEAD does not use up a fault that happens once
        act = acts[0] if request.command == "HEAD" else acts[min(self._outputs.count(output), len(acts) - 1)]
        if act.how == "redirect" and request.path.endswith("?moved"):
            act = Act()
        sent, complete = self._carry_out(request, output, act)
        if request.command != "HEAD":
            self._record(request, output, act, sent, complete)

    def _carry_out(self, request: http.server.BaseHTTPRequestHandler, output: Output, act: Act) -> tuple[int, bool]:
        if act.how == "error":
            if act.status == 404 and not output.expired:
                self._outputs.refuse(output)
            _problem(request, act.status)
            return 0, False
        if act.how == "redirect":
            _redirect(request, self._target(request, output, act.to))
            return 0, False
        return _body(request, self._outputs.file(output), act)

    def _target(self, request: http.server.BaseHTTPRequestHandler, output: Output, to: str) -> str:
        own = self._outputs.url(output)
        targets = {"own": f"{own}?moved", "loop": f"{own}?again", "trap": f"{self._trap_url}{request.path}"}
        return targets.get(to, "http://169.254.169.254/latest/meta-data/")

    def _record(
        self, request: http.server.BaseHTTPRequestHandler, output: Output, act: Act, sent: int, complete: bool
    ) -> None:
        self._ledger.add(
            "served",
            prediction=output.prediction,
            path=output.path,
            status=act.status,
            how=act.how,
            sent=sent,
            complete=complete,
            token_sent="authorization" in request.headers,
        )


def _problem(request: http.server.BaseHTTPRequestHandler, status: int) -> None:
    body = f"<Error><Code>{status}</Code></Error>".encode()
    request.send_response(status)
    if status in (429, 503):
        request.send_header("Retry-After", "1")
    request.send_header("Content-Type", "application/xml")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _redirect(request: http.server.BaseHTTPRequestHandler, to: str) -> None:
    request.send_response(302)
    request.send_header("Location", to)
    request.send_header("Content-Length", "0")
    request.end_headers()


def _body(request: http.server.BaseHTTPRequestHandler, file: File, act: Act) -> tuple[int, bool]:
    """Send headers and body; return the bytes sent and whether that was the whole file."""
    span = _span(request.headers.get("Range"), len(file.data))
    if span is not None and not span:
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{len(file.data)}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return 0, False
    data = file.data if span is None else file.data[span.start : span.stop]
    _headers(request, file, act, span)
    if request.command == "HEAD":
        return 0, False
    sent = 0
    chunked = act.how in ("chunked", "endless")
    with contextlib.suppress(ConnectionError, TimeoutError):  # the reader has left: what was sent is what counts
        for piece in _pieces(data, act):
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            sent += len(piece)
        if act.how == "chunked":
            request.wfile.write(b"0\r\n\r\n")
    if act.how not in ("whole", "drip", "chunked"):
        _hang_up(request, reset=act.how == "reset")
    return sent, sent == len(file.data)


def _headers(request: http.server.BaseHTTPRequestHandler, file: File, act: Act, span: range | None) -> None:
    length = len(file.data) if span is None else len(span)
    request.send_response(200 if span is None else 206)
    request.send_header("Content-Type", file.content_type)
    if act.how in ("chunked", "endless"):
        request.send_header("Transfer-Encoding", "chunked")
    else:
        request.send_header("Content-Length", str(TOO_LARGE_BYTES if act.how == "padded" else length))
        request.send_header("Accept-Ranges", "bytes")
    if span is not None:
        request.send_header("Content-Range", f"bytes {span.start}-{span.stop - 1}/{len(file.data)}")
    request.end_headers()


def _span(header: str | None, length: int) -> range | None:
    """Return the bytes one `Range` asks for: None for all (also when it is not understood), empty for 416."""
    found = _RANGE.match(header or "")
    if not found:
        return None
    start, end = int(found[1]), int(found[2] or length - 1)
    return range(start, min(end + 1, length))


def _pieces(data: bytes, act: Act) -> Iterator[bytes]:
    match act.how:
        case "cut" | "reset":
            yield data[: len(data) // 2]
        case "drip":
            step = max(1, len(data) // 20)
            for at in range(0, len(data), step):
                yield data[at : at + step]
                time.sleep(act.seconds / 20)
        case "trickle":
            yield from _trickle(data)
        case "padded" | "endless":
            yield data
            left = TOO_LARGE_BYTES - len(data) if act.how == "padded" else 2**40
            while left > 0:
                yield _ZEROS[:left]
                left -= len(_ZEROS)
        case _ if data:
            yield data


def _trickle(data: bytes) -> Iterator[bytes]:
    until = time.monotonic() + _TRICKLE_S
    for at in range(len(data)):
        if time.monotonic() > until:
            return
        yield data[at : at + 1]
        time.sleep(0.1)


def _hang_up(request: http.server.BaseHTTPRequestHandler, *, reset: bool) -> None:
    request.close_connection = True
    if reset:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        os.close(request.connection.detach())  # close() would wait for the request's two file objects
