"""One POST that has a provider make something: never sent twice, never redirected, and what its end amounts to."""

import contextlib
import functools
import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

import certifi
from urllib3.util import parse_url

from moorage.errors import MalformedPayload, NotSubmitted, ProviderRefused, SubmitUncertain
from moorage.urls import parse_endpoint
from providers import json_fields, submit_errors

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
_REFUSAL_BYTES: Final = 64 * 1024  # of what says no, more is not read
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SubmitResponse:
    """What a provider answered a submission with: the JSON object of a 2xx, and its headers."""

    fields: dict[str, Any]
    headers: http.client.HTTPMessage


class SubmitClient:
    """
    A provider's door for orders, behind one token.

    Every request has a connection of its own: on one that was kept open, a request that the server never read would
    look like one whose answer was lost.

    Args:
        name: of the provider, for messages.
        token_header: the header that carries the token, and its value.
        max_bytes: of an answer.
        answer_seconds: from the connection to the end of the answer, however slowly it comes.
    """

    def __init__(
        self, name: str, token_header: tuple[str, str], *, max_bytes: int, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._name = name
        self._token = token_header[1].partition(" ")[2]
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
            "Content-Type": "application/json",
            "User-Agent": "moorage",
            token_header[0]: token_header[1],
        }
        self._max_bytes = max_bytes
        self._answer_seconds = answer_seconds

    def send(
        self, url: str, fields: Mapping[str, Any], *, webhook_url: str = "", timeout_seconds: float | None = None
    ) -> SubmitResponse:
        """
        Send one order and return the answer to it.

        Args:
            fields: the body, as JSON.
            webhook_url: whose key must not stand in a message, should the provider repeat it; the token never does.
            within_seconds: less than `answer_seconds`, where whoever orders does not wait as long.

        Raises:
            NotSubmitted, ProviderBusy, SubmitUncertain, BillingRefused, ProviderRefused: as `Provider.submit` says.
        """
        body = self._json(fields)
        connection = self._connect(url)
        with contextlib.closing(connection):
            seconds = min(self._answer_seconds, timeout_seconds or self._answer_seconds)
            status, headers, said = self._exchange(connection, parse_url(url).request_uri, body, seconds)
        if not 200 <= status < 300:
            hidden = (self._token, *(value for _, value in parse_qsl(urlsplit(webhook_url).query)))
            raise submit_errors.classify_response(self._name, status, headers, said, secrets=hidden)
        try:
            return SubmitResponse(json_fields.parse_json_object(said), headers)
        except MalformedPayload as error:
            raise SubmitUncertain(f"{self._name} took an order with {status}, and {error}") from error

    def _json(self, fields: Mapping[str, Any]) -> bytes:
        try:
            return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode("ascii")
        except (ValueError, TypeError) as error:  # NaN, or what JSON has no word for
            raise ProviderRefused(f"the input cannot be sent to {self._name} as JSON: {error}") from error

    def _connect(self, url: str) -> http.client.HTTPConnection:
        where = parse_endpoint(url)
        connection: http.client.HTTPConnection
        if where.scheme == "https":
            connection = http.client.HTTPSConnection(where.host, where.port, timeout=CONNECT_SECONDS, context=_tls())
        else:
            connection = http.client.HTTPConnection(where.host, where.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
            connection.close()
            raise NotSubmitted(f"no connection to {self._name}: {_cause(error)}") from error
        return connection

    def _exchange(
        self, connection: http.client.HTTPConnection, path: str, body: bytes, seconds: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body; from the first byte on, nobody knows what a failure left behind."""
        deadline = time.monotonic() + seconds
        try:
            connection.sock.settimeout(seconds)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before it has read it all
                connection.request("POST", path, body=body, headers=self._headers)
            source = cast("socket.socket", _Timed(connection.sock, deadline))
            with contextlib.closing(http.client.HTTPResponse(source, method="POST")) as response:
                response.begin()
                return response.status, response.headers, self._read(response)
        except (OSError, http.client.HTTPException) as error:
            raise SubmitUncertain(f"{self._name} did not answer an order: {_cause(error)}") from error

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """Return the body; of a refusal only its beginning, which is enough for a reason."""
        took = 200 <= response.status < 300
        body = bytearray()
        while chunk := response.read(_CHUNK_BYTES):
            body += chunk
            if not took and len(body) >= _REFUSAL_BYTES:
                break
            if len(body) > self._max_bytes:
                raise SubmitUncertain(f"{self._name} answered an order with more than {self._max_bytes} bytes")
        if took and response.length:  # a read of some bytes does not complain about those that are missing
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(body)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return what every connection is checked by; reading the certificates takes 30 ms."""
    return ssl.create_default_context(cafile=certifi.where())


class _Timed(io.RawIOBase):
    """A socket to read an answer from, until a moment of the monotonic clock: a trickle does not put it off."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what `HTTPResponse` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is; raises TimeoutError at the moment."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
