"""Requests to a provider's API: with its token, limited in time and size, without redirects."""

import contextlib
import http.client
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Final

import certifi
import urllib3

from moorage.errors import MoorageError, ProviderRefused, ProviderUnavailable
from moorage.retry_policy import parse_retry_after

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 15.0
TOTAL_SECONDS: Final = 30.0
JSON_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "moorage"}
_CHUNK_BYTES: Final = 64 * 1024
_KEPT_CONNECTIONS: Final = 4
_RETRYABLE: Final = frozenset({408, 425, 429})
_HINTS: Final = {
    401: "the API token is not valid",
    403: "the API token lacks the permission",
    404: "no such prediction",
    410: "the prediction is deleted",
}


class ApiClient:
    """
    Client of one provider's API. `name` is for messages, `token_header` name and value, `max_bytes` limits a response.

    urllib3, not requests: requests reads proxies and `.netrc` from the environment (the latter replaces the token), and
    the receiver, which imports every provider, would load it without need.
    """

    def __init__(
        self,
        name: str,
        token_header: tuple[str, str] | None,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._headers = JSON_HEADERS | dict(headers or {}) | dict([token_header] if token_header else [])
        self._max_bytes = max_bytes
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._pool = urllib3.PoolManager(
            maxsize=_KEPT_CONNECTIONS, retries=False, timeout=timeout, ca_certs=certifi.where()
        )

    def get(self, url: str, *, max_bytes: int | None = None) -> bytes:
        """
        Return the body of a 200 response.

        Raises:
            ProviderUnavailable: no complete response in time, 408, 425, 429 or 5xx.
            ProviderRefused: any other status, including redirects, or a response above the limit.
        """
        return self.request(url, statuses=(200,), max_bytes=max_bytes)[1]

    def request(
        self, url: str, *, statuses: Collection[int], max_bytes: int | None = None, method: str = "GET"
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Return status, body and headers of a response with one of the `statuses`; raises as `get` for all others."""
        try:
            response = self._pool.request(method, url, headers=self._headers, redirect=False, preload_content=False)
            with contextlib.closing(response):  # a fully read one is back in the pool already
                return response.status, self._body(response, statuses, max_bytes or self._max_bytes), response.headers
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise ProviderUnavailable(f"{self._name} did not respond: {describe_error(error)}") from error

    def _body(self, response: urllib3.BaseHTTPResponse, statuses: Collection[int], max_bytes: int) -> bytes:
        if response.status not in statuses:
            raise self.classify_status(response.status, response.headers)
        deadline = time.monotonic() + TOTAL_SECONDS
        body = bytearray()
        while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
            body += chunk
            if len(body) > max_bytes:
                name = " (MOORAGE_WEBHOOK_MAX_BYTES)" if max_bytes == self._max_bytes else ""
                raise ProviderRefused(f"{self._name} returned more than {max_bytes} bytes{name}")
            if time.monotonic() > deadline:
                raise ProviderUnavailable(f"{self._name} did not end its response within {TOTAL_SECONDS:g} s")
        return bytes(body)

    def classify_status(self, status: int, headers: Mapping[str, str]) -> MoorageError:
        facts = {"status": status}
        if status >= 500 or status in _RETRYABLE:
            wait_seconds = parse_retry_after(headers.get("Retry-After"), datetime.now(UTC))
            return ProviderUnavailable(f"{self._name} returned {status}", facts=facts, retry_after=wait_seconds)
        hint = "a redirect: correct the URL of the API" if 300 <= status < 400 else _HINTS.get(status, "refused")
        return ProviderRefused(f"{self._name} returned {status}: {hint}", facts=facts)


def describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
