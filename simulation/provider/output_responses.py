"""Responses to requests for outputs, with their faults; uses the raw socket for what HTTP libraries do not allow."""

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from simulation.provider.http_types import Handler
from simulation.provider.ledger import Ledger
from simulation.provider.outputs import TOO_LARGE_BYTES, Output, Outputs
from simulation.provider.pictures import File
from simulation.provider.script import Transfer

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)$")
_TRICKLE_S: Final = 600.0
_ZEROS: Final = bytes(65536)
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


class OutputResponder:
    """Serves outputs through a request handler and records the transfers."""

    def __init__(self, outputs: Outputs, ledger: Ledger, trap_url: str) -> None:
        self._outputs, self._ledger, self._trap_url = outputs, ledger, trap_url

    def respond(self, request: Handler, token: str) -> None:
        """Respond to GET or HEAD for the output with this token; 404 without one."""
        output = self._outputs.find(token)
        if output is None:
            _send_error(request, 404)
            return
        transfers = (Transfer("error", 404),) if output.is_expired else output.fault.transfers
        # HEAD does not use up a fault that happens once
        index = 0 if request.command == "HEAD" else min(self._outputs.count_request(output), len(transfers) - 1)
        transfer = transfers[index]
        if transfer.mode == "redirect" and request.path.endswith("?moved"):
            transfer = Transfer()
        sent, is_complete = self._transfer(request, output, transfer)
        if request.command != "HEAD":
            self._ledger.add(
                "served", prediction=output.prediction_id, path=output.path, status=transfer.status, mode=transfer.mode,
                sent=sent, complete=is_complete, token_sent="authorization" in request.headers,
            )  # fmt: skip

    def _transfer(self, request: Handler, output: Output, transfer: Transfer) -> tuple[int, bool]:
        """Return the number of bytes sent and whether that was the complete file."""
        if transfer.mode == "error":
            if transfer.status == 404 and not output.is_expired:
                output.has_returned_404 = True
            _send_error(request, transfer.status)
            return 0, False
        if transfer.mode == "redirect":
            own = self._outputs.build_url(output)
            targets = {"own": f"{own}?moved", "loop": f"{own}?again", "trap": f"{self._trap_url}{request.path}"}
            location = targets.get(transfer.target, "http://169.254.169.254/latest/meta-data/")
            request.send_all(302, {"Location": location}, b"")
            return 0, False
        return _send_file(request, self._outputs.build_file(output), transfer)


def _send_error(request: Handler, status: int) -> None:
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    body = f"<Error><Code>{status}</Code></Error>".encode()
    request.send_all(status, {**headers, "Content-Type": "application/xml"}, body)


def _send_file(request: Handler, file: File, transfer: Transfer) -> tuple[int, bool]:
    span = _parse_range(request.headers.get("Range"), len(file.data))
    if span is not None and not span:
        request.send_all(416, {"Content-Range": f"bytes */{len(file.data)}"}, b"")
        return 0, False
    data = file.data if span is None else file.data[span.start : span.stop]
    request.send_head(200 if span is None else 206, _build_headers(file, transfer, span))
    if request.command == "HEAD":
        return 0, False
    sent = 0
    is_chunked = transfer.mode in ("chunked", "endless")
    with contextlib.suppress(ConnectionError, TimeoutError):  # the client has left: the bytes sent so far count
        for piece in _split(data, transfer):
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            sent += len(piece)
        if transfer.mode == "chunked":
            request.wfile.write(b"0\r\n\r\n")
    if transfer.mode not in ("whole", "drip", "chunked"):
        request.close_connection = True
    if transfer.mode == "reset":
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        os.close(request.connection.detach())  # close() would wait for the request's two file objects
    return sent, sent == len(file.data)


def _build_headers(file: File, transfer: Transfer, span: range | None) -> dict[str, str]:
    headers = {"Content-Type": file.content_type}
    if transfer.mode in ("chunked", "endless"):
        headers["Transfer-Encoding"] = "chunked"
    else:
        length = len(file.data) if span is None else len(span)
        headers["Content-Length"] = str(TOO_LARGE_BYTES if transfer.mode == "padded" else length)
        headers["Accept-Ranges"] = "bytes"
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(file.data)}"
    return headers


def _parse_range(header: str | None, length: int) -> range | None:
    """Return the requested bytes: None for all (also for an unsupported header), empty for 416."""
    match = _RANGE.match(header or "")
    if not match:
        return None
    start, end = int(match[1]), int(match[2] or length - 1)
    return range(start, min(end + 1, length))


def _split(data: bytes, transfer: Transfer) -> Iterator[bytes]:
    match transfer.mode:
        case "cut" | "reset":
            yield data[: len(data) // 2]
        case "drip":
            step = max(1, len(data) // 20)
            for offset in range(0, len(data), step):
                yield data[offset : offset + step]
                time.sleep(transfer.seconds / 20)
        case "trickle":
            until = time.monotonic() + _TRICKLE_S
            for offset in range(len(data)):
                if time.monotonic() > until:
                    return
                yield data[offset : offset + 1]
                time.sleep(0.1)
        case "padded" | "endless":
            yield data
            remaining = TOO_LARGE_BYTES - len(data) if transfer.mode == "padded" else 2**40
            while remaining > 0:
                yield _ZEROS[:remaining]
                remaining -= len(_ZEROS)
        case _ if data:
            yield data
