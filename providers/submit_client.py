"""The POST request that submits a prediction: sent once, never redirected, with an error type for each outcome."""

import contextlib
import functools
import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

import certifi
from urllib3.filepost import encode_multipart_formdata
from urllib3.util import parse_url

from moorage.errors import MalformedPayload, NotSubmitted, ProviderRefused, SubmitUncertain
from moorage.provider_types import InputFile
from moorage.urls import parse_endpoint
from providers import json_fields, submit_responses
from providers.api_client import JSON_HEADERS, describe_error

CONNECT_SECONDS: Final = 5.0
RESPONSE_SECONDS: Final = 30.0
_MAX_ERROR_BYTES: Final = 64 * 1024  # of an error response
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SubmitResponse:
    fields: dict[str, Any]
    headers: http.client.HTTPMessage


class SubmitClient:
    """
    Client for submissions to one provider. `response_seconds` are from the connection to the end of the response.

    Every request has its own connection: on a reused one, a request that the server never read cannot be distinguished
    from one whose response was lost.
    """

    def __init__(
        self, name: str, token_header: tuple[str, str], *, max_bytes: int, response_seconds: float = RESPONSE_SECONDS
    ) -> None:
        self._name = name
        self._token = token_header[1].rpartition(" ")[2]
        self._headers = {**JSON_HEADERS, "Connection": "close", token_header[0]: token_header[1]}
        self._max_bytes = max_bytes
        self._response_seconds = response_seconds

    def send(
        self,
        url: str,
        fields: Mapping[str, Any],
        *,
        webhook_url: str | None = None,
        secrets: Iterable[str] = (),
        timeout_seconds: float | None = None,
    ) -> SubmitResponse:
        """
        Send one submission and return the response; raises as `Provider.submit`.

        Args:
            fields: the JSON body; with an InputFile, or a list of them, a form.
            webhook_url: its key is removed from error messages, as are the token and the `secrets`.
            timeout_seconds: a limit below `response_seconds`.
        """
        body, content_type = self._encode(fields)
        connection = self._connect(url)
        with contextlib.closing(connection):
            seconds = min(self._response_seconds, timeout_seconds or self._response_seconds)
            target, sent_headers = parse_url(url).request_uri, {**self._headers, "Content-Type": content_type}
            status, headers, content = self._exchange(connection, target, body, sent_headers, seconds)
        if not 200 <= status < 300:
            hidden = (self._token, *secrets, *(value for _, value in parse_qsl(urlsplit(webhook_url or "").query)))
            raise submit_responses.classify_submit_response(self._name, status, headers, content, secrets=hidden)
        try:
            return SubmitResponse(json_fields.parse_json_object(content), headers)
        except MalformedPayload as error:
            raise SubmitUncertain(f"{self._name} accepted a submission with {status}, but {error}") from error

    def _encode(self, fields: Mapping[str, Any]) -> tuple[bytes, str]:
        form = [part for name, value in fields.items() for part in _build_parts(name, value)]
        try:
            if any(isinstance(value, tuple) for _, value in form):
                return encode_multipart_formdata([(n, v if isinstance(v, tuple) else _to_text(v)) for n, v in form])
            return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode("ascii"), "application/json"
        except (ValueError, TypeError) as error:  # NaN, or a type without JSON form
            raise ProviderRefused(f"the input cannot be sent to {self._name} as JSON: {error}") from error

    def _connect(self, url: str) -> http.client.HTTPConnection:
        endpoint = parse_endpoint(url)
        host, port = endpoint.host, endpoint.port
        connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        try:
            if endpoint.scheme == "https":
                context = _get_tls_context()  # reads a file, once
                connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=context)
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
            connection.close()
            raise NotSubmitted(f"no connection to {self._name}: {describe_error(error)}") from error
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        sent_headers: Mapping[str, str],
        seconds: float,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body. Once a byte is sent, the effect of a failure is unknown."""
        deadline = time.monotonic() + seconds
        try:
            connection.sock.settimeout(seconds)
            # The server may refuse before it has read all.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", path, body=body, headers=sent_headers)
            source = cast("socket.socket", _DeadlineSocket(connection.sock, deadline))
            with contextlib.closing(http.client.HTTPResponse(source, method="POST")) as response:
                response.begin()
                return response.status, response.headers, self._read_body(response)
        except (OSError, http.client.HTTPException) as error:
            raise SubmitUncertain(f"{self._name} did not respond to a submission: {describe_error(error)}") from error

    def _read_body(self, response: http.client.HTTPResponse) -> bytes:
        """Return the body; of an error only the first 64 KiB, which are enough for a reason."""
        is_accepted = 200 <= response.status < 300
        body = bytearray()
        while chunk := response.read(_CHUNK_BYTES):
            body += chunk
            if not is_accepted and len(body) >= _MAX_ERROR_BYTES:
                break
            if len(body) > self._max_bytes:
                raise SubmitUncertain(f"{self._name} returned more than {self._max_bytes} bytes")
        if is_accepted and response.length:  # read(n) does not raise for missing bytes
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(body)


def _build_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the parts of a form for a field; each file of a list has a part of its own, NAME[]."""
    if not is_file(value):
        return [(name, value)]
    field, files = (f"{name}[]", value) if isinstance(value, list) else (name, [value])
    return [(field, (file.name, file.data, file.content_type)) for file in files]


def is_file(value: object) -> bool:
    """Return True for a file, and for a list of files alone."""
    files = value if isinstance(value, list) else [value]
    return bool(files) and all(isinstance(file, InputFile) for file in files)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


@functools.cache
def _get_tls_context() -> ssl.SSLContext:
    """Return the shared TLS context; loading the certificates takes 30 ms."""
    return ssl.create_default_context(cafile=certifi.where())


class _DeadlineSocket(io.RawIOBase):
    """A readable socket with a deadline (monotonic clock), which a slow response does not extend."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)
