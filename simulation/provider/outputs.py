"""The output files of predictions: created before the end, found by the token in their URL, gone at their expiry."""

import base64
import contextlib
import hashlib
import itertools
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from simulation.provider import pictures
from simulation.provider.http_types import Handler
from simulation.provider.ledger import Ledger, format_time
from simulation.provider.pictures import File
from simulation.provider.script import FAULTS, NO_FAULT, OutputFault, Script, Transfer

TOO_LARGE_BYTES: Final = 60_000_000
_PAGE: Final = File(
    b"<!doctype html><title>502 Bad Gateway</title><h1>Bad Gateway</h1><p>Please try again.</p>\n",
    "text/html; charset=utf-8",
)
_TRICKLE_S: Final = 600.0
_ZEROS: Final = bytes(65536)
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


@dataclass(slots=True)
class Output:
    """One file; its bytes are generated from `format` and `seed` for every request."""

    prediction_id: str
    index: int
    path: str  # in the response: output, output[2], output.images[0].url
    format: str
    seed: int
    fault_name: str | None
    size_px: tuple[int, int] | None = None  # of a generated picture
    prompt: str = ""  # drawn into it
    sha256: str | None = None  # of the bytes as served; None where these are padded or endless
    bytes: int | None = None
    expires_at: float = float("inf")  # Unix seconds; known at the end of the prediction
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    request_numbers: Iterator[int] = field(default_factory=itertools.count)  # of its next requests
    has_returned_404: bool = False  # so that a poll may return a new URL

    @property
    def fault(self) -> OutputFault:
        return FAULTS[self.fault_name] if self.fault_name else NO_FAULT

    @property
    def is_expired(self) -> bool:
        return time.time() >= self.expires_at


class Outputs:
    """All outputs by token; serves them."""

    def __init__(self, base_url: str, trap_url: str, folder: Path | None, ledger: Ledger) -> None:
        self._base_url, self._trap_url, self._folder, self._ledger = base_url, trap_url, folder, ledger
        self._by_token: dict[str, Output] = {}
        self._lock = threading.Lock()
        self.files: Final = pictures.list_folder(folder) if folder else ()

    def create(self, prediction_id: str, script: Script, path: str, prompt: str = "") -> list[Output]:
        """Create the outputs of a prediction; {} in `path` stands for the index."""
        paths = [path.format(index) for index in range(script.outputs)]
        created = [self._build(prediction_id, script, index, path, prompt) for index, path in enumerate(paths)]
        with self._lock:
            self._by_token.update({output.token: output for output in created})
        return created

    def _build(self, prediction_id: str, script: Script, index: int, path: str, prompt: str) -> Output:
        digest = hashlib.sha256(prediction_id.encode()).digest()
        seed = script.seed if script.seed is not None else int.from_bytes(digest[:4])
        format_, content = script.formats[index % len(script.formats)], script.output_fault(index).content
        if content == "bomb" or (pictures.extension(format_) == "gif" and content in ("half", "noise")):
            format_ = "png"  # a damaged GIF may still decode to fewer frames
        size_px = (script.width_px, script.height_px) if script.width_px and script.height_px else None
        output = Output(prediction_id, index, path, format_, seed + index, script.faults.get(index), size_px, prompt)
        if output.fault.transfers[-1].mode not in ("padded", "endless"):
            data = self.build_file(output).data
            output.sha256, output.bytes = hashlib.sha256(data).hexdigest(), len(data)
        return output

    def renew_url(self, output: Output) -> None:
        """Give the output a new URL without a fault, if its fault allows it and the old URL has returned 404."""
        with self._lock:
            if not (output.fault.is_renewable and output.has_returned_404):
                return
            del self._by_token[output.token]
            output.token, output.fault_name, output.has_returned_404 = secrets.token_hex(20), None, False
            self._by_token[output.token] = output
        self._ledger.add("renewed", prediction=output.prediction_id, path=output.path, url=self.build_url(output))

    def build_file(self, output: Output) -> File:
        """Return bytes and content type as they are served."""
        whole = self._read_whole(output)
        match output.fault.content:
            case "half":
                data = whole.data[: len(whole.data) // 2]
            case "noise":
                data = whole.data[:16] + pictures.noise(len(whole.data) - 16, output.seed)
            case "page":
                return _PAGE
            case "empty":
                data = b""
            case _:
                return whole
        return File(data, whole.content_type)

    def build_url(self, output: Output) -> str:
        hosts = {"trap": self._trap_url, "foreign": "http://files.example.invalid"}
        base = hosts.get(output.fault.source, self._base_url)
        return f"{base}/out/{output.token}/{output.index}.{pictures.extension(output.format)}"

    def build_data_uri(self, output: Output) -> str:
        file = self.build_file(output)
        return f"data:{file.content_type};base64,{base64.b64encode(file.data).decode()}"

    def record(self, output: Output, *, is_inline: bool, expected: str | None) -> None:
        """Add the output to the ledger. `expected`: None for the result that its fault defines."""
        fault, expires_at = output.fault, datetime.fromtimestamp(output.expires_at, UTC)
        self._ledger.add(
            "output", prediction=output.prediction_id, path=output.path, sha256=output.sha256, bytes=output.bytes,
            url=None if is_inline else self.build_url(output), fault=output.fault_name,
            content_type=_PAGE.content_type if fault.content == "page" else pictures.content_type(output.format),
            expected=expected or fault.expected, why=fault.description, expires_at=format_time(expires_at),
        )  # fmt: skip

    def respond(self, request: Handler, token: str) -> None:
        """Respond to a GET of the output with this token, with 404 without one, and record the transfer."""
        with self._lock:
            output = self._by_token.get(token)  # None: it is unknown, or has a new URL
        if output is None:
            _send_error(request, 404)
            return
        transfers = (Transfer("error", 404),) if output.is_expired else output.fault.transfers
        transfer = transfers[min(next(output.request_numbers), len(transfers) - 1)]
        if transfer.mode == "redirect" and request.path.endswith("?moved"):
            transfer = Transfer()
        sent, is_complete = self._transfer(request, output, transfer)
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
            own = self.build_url(output)
            targets = {"own": f"{own}?moved", "loop": f"{own}?again", "trap": f"{self._trap_url}{request.path}"}
            location = targets.get(transfer.target, "http://169.254.169.254/latest/meta-data/")
            request.send_all(302, {"Location": location}, b"")
            return 0, False
        return _send_file(request, self.build_file(output), transfer)

    def _read_whole(self, output: Output) -> File:
        if output.fault.content == "bomb":
            return pictures.bomb()
        if self._folder and output.format in self.files:
            return File((self._folder / output.format).read_bytes(), pictures.content_type(output.format))
        return pictures.generate(output.format, output.seed, output.size_px, output.prompt)


def _send_error(request: Handler, status: int) -> None:
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    body = f"<Error><Code>{status}</Code></Error>".encode()
    request.send_all(status, {**headers, "Content-Type": "application/xml"}, body)


def _send_file(request: Handler, file: File, transfer: Transfer) -> tuple[int, bool]:
    is_chunked, length = transfer.mode in ("chunked", "endless"), len(file.data)
    framing = {"Content-Length": str(TOO_LARGE_BYTES if transfer.mode == "padded" else length)}
    if is_chunked:
        framing = {"Transfer-Encoding": "chunked"}
    request.send_head(200, {"Content-Type": file.content_type, **framing})
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):  # the client has left: the bytes sent so far count
        for piece in _split(file.data, transfer):
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            sent += len(piece)
        if transfer.mode == "chunked":
            request.wfile.write(b"0\r\n\r\n")
    if transfer.mode not in ("whole", "drip", "chunked"):
        request.close_connection = True
    if transfer.mode == "reset":
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        os.close(request.connection.detach())  # close() would wait for the request's two file objects
    return sent, sent == length


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
