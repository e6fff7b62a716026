"""Downloads: bytes of a URL, a `data:` URI or a stored object, hashed, in an unnamed temporary file."""

import contextlib
import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.util import parse_url

from egress.content_encoding import decompress, list_compressions
from egress.sockets import call_while_waiting
from egress.spool import Spool
from media.limits import Limits
from moorage import logs, metrics
from moorage.certificates import iterate_causes
from moorage.errors import DownloadInterrupted, DownloadRefused, MoorageError, OutputGone
from moorage.local_errors import open_temporary_file
from moorage.model import FetchedFile
from moorage.retry_policy import parse_retry_after
from moorage.urls import resolve_redirect, restore_target

CHUNK_BYTES: Final = 128 * 1024
HeadersFor = Callable[[str], Mapping[str, str]]
UrlCheck = Callable[[str], str | None]
ProgressCallback = Callable[[], None]

_BAD_URL = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    http.client.InvalidURL,
    LocationValueError,
    UnicodeError,
)
_BROKEN = (requests.exceptions.RequestException, HTTPError, http.client.HTTPException, ssl.SSLError, OSError)

_GONE: Final = frozenset({401, 403, 404, 410})
_RETRYABLE: Final = frozenset({408, 425, 429})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Not the file: accepted and not ready, no content, reset content, a difference to another version.
_WITHOUT_FILE: Final = frozenset({202, 204, 205, 226})
_CONTENT_RANGE: Final = re.compile(r"bytes\s+0-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)


@contextlib.contextmanager
def download_url(
    session: requests.Session,
    url: str,
    *,
    limits: Limits,
    headers_for: HeadersFor,
    check_url: UrlCheck,
    on_progress: ProgressCallback,
) -> Iterator[FetchedFile]:
    """
    Download a URL; the file exists until the `with` block ends. Redirects are followed here, and each hop is checked.

    Args:
        session: from `EgressGuard.new_session`, which refuses private addresses.
        headers_for: returns the headers for a URL; called for each hop, so that a token is sent to its own hosts only.
        check_url: returns None, or the reason why a URL is refused. It receives the URL exactly as requested.
        on_progress: called for each chunk and each second without data; its exceptions end the download.

    Raises:
        DownloadInterrupted: no connection, too slow, incomplete, in an unsupported encoding, 408, 425, 429, 5xx.
        OutputGone: 401, 403, 404 or 410.
        DownloadRefused: a refused address or hop, too many redirects, too large, any other 4xx.
        DiskFull: the temporary folder is full or not writable.
    """
    with open_temporary_file() as file:
        task = _Download(session, limits, Spool(file, limits), on_progress)
        with task.translate_errors(), call_while_waiting(task.check_limits):
            fetched = task.download(url.strip(), headers_for, check_url)
        yield fetched


@contextlib.contextmanager
def spool_bytes(data: bytes, limits: Limits) -> Iterator[FetchedFile]:
    with spool_chunks(iter((data,)), limits, lambda: None) as fetched:
        yield fetched


@contextlib.contextmanager
def spool_chunks(
    chunks: Iterator[bytes],
    limits: Limits,
    on_progress: ProgressCallback,
    *,
    content_type: str | None = None,
    extension: str | None = None,
) -> Iterator[FetchedFile]:
    with open_temporary_file() as file:
        spool = Spool(file, limits)
        for chunk in chunks:
            on_progress()
            spool.write(chunk)
        yield spool.finish(content_type, extension)


class _Download:
    def __init__(self, session: requests.Session, limits: Limits, file: Spool, on_progress: ProgressCallback) -> None:
        self._session, self._limits, self._file, self._on_progress = session, limits, file, on_progress
        self._started = time.monotonic()
        self._body_started: float | None = None
        self._received = 0  # as sent; more or fewer than the file has if the body is encoded
        self._expected: int | None = None
        self._status: int | None = None
        self._url = self._host = ""

    def download(self, url: str, headers_for: HeadersFor, check_url: UrlCheck) -> FetchedFile:
        for _ in range(self._limits.max_redirects + 1):
            with contextlib.closing(self._get(url, headers_for, check_url)) as response:
                self._status = response.status_code
                if self._status // 100 != 2:  # counted when the body has arrived
                    metrics.DOWNLOADS.labels(self._host, f"{self._status // 100}xx").inc()
                location = response.headers.get("Location")
                if location is None or self._status not in _REDIRECTS:
                    return self._spool_body(response)
                url = resolve_redirect(self._url, location)
        raise DownloadRefused(f"more than {self._limits.max_redirects} redirects")

    def check_limits(self) -> None:
        self._on_progress()
        now, limits = time.monotonic(), self._limits
        if now - self._started > limits.total_seconds:
            raise DownloadInterrupted(f"not done within {limits.total_seconds:g} s")
        spent = now - self._body_started if self._body_started else 0.0
        if spent > limits.slow_after_seconds and self._received < spent * limits.min_bytes_per_second:
            raise DownloadInterrupted(f"slower than {limits.min_bytes_per_second} bytes a second")

    def facts(self) -> dict[str, Any]:
        return {
            "url": logs.redact_url(self._url),
            "status": self._status,
            "bytes": self._file.size_bytes,
            "expected": self._expected,
            "seconds": round(time.monotonic() - self._started, 3),
        }

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Convert errors of the HTTP libraries, add the measurements to all, and count what was received."""
        try:
            yield
            metrics.DOWNLOADS.labels(self._host, "2xx").inc()
        except (DownloadRefused, DownloadInterrupted, OutputGone) as error:
            is_cut = self._status // 100 == 2 if self._status else isinstance(error, DownloadInterrupted)
            if is_cut:
                metrics.DOWNLOADS.labels(self._host, "interrupted").inc()
            error.facts = {**self.facts(), **error.facts}
            raise
        except _BAD_URL as error:
            raise DownloadRefused(f"invalid URL: {error}", facts=self.facts()) from error
        except _BROKEN as error:
            metrics.DOWNLOADS.labels(self._host, "interrupted").inc()
            *_, cause = iterate_causes(error)  # three libraries wrap it without adding information
            message = f"download interrupted: {type(cause).__name__}: {cause}"[:500]
            raise DownloadInterrupted(message, facts=self.facts(), event_kind="source_interrupted") from error
        finally:
            if self._received:
                metrics.DOWNLOAD_BYTES.labels(self._host).inc(self._received)

    def _get(self, url: str, headers_for: HeadersFor, check_url: UrlCheck) -> requests.Response:
        self.check_limits()
        self._url, self._status = url, None
        prepared = requests.PreparedRequest()  # the session would add what is replaced below: headers and cookies
        prepared.method = "GET"
        prepared.prepare_url(url, None)
        self._url = url = prepared.url = restore_target(prepared.url or "", url)
        _require_unambiguous(url)
        if reason := check_url(url):
            raise DownloadRefused(reason)
        prepared.prepare_headers({**self._session.headers, **headers_for(url), "Accept-Encoding": "identity"})
        # The adapter, not the session: a session reads and decodes the whole body of a redirect.
        timeout = (self._limits.connect_seconds, self._limits.idle_seconds)
        self._host = metrics.name_host((urlsplit(url).hostname or "").lower())
        return self._session.get_adapter(url).send(prepared, stream=True, timeout=timeout)

    def _spool_body(self, response: requests.Response) -> FetchedFile:
        if error := _classify_response(response.status_code, response.headers, datetime.now(UTC)):
            raise error
        raw: urllib3.HTTPResponse = response.raw
        compressions = list_compressions(response.headers.get("Content-Encoding", ""))
        self._expected = _parse_range_size(response.headers) if self._status == 206 else raw.length_remaining
        if not compressions:
            self._file.set_expected_bytes(self._expected)
        for piece in decompress(self._read_chunks(raw), compressions):
            self._file.write(piece)
            self.check_limits()
        if not self._file.size_bytes:
            raise DownloadInterrupted("empty response")
        return self._file.finish(response.headers.get("Content-Type"), find_extension(self._url))

    def _read_chunks(self, raw: urllib3.HTTPResponse) -> Iterator[bytes]:
        """Yield the body as it is sent; raises DownloadInterrupted if it has another size than stated."""
        self._body_started = time.monotonic()
        while chunk := raw.read1(CHUNK_BYTES, decode_content=False):
            self._received += len(chunk)
            self.check_limits()
            yield chunk
        if self._expected is not None and self._received != self._expected:
            raise DownloadInterrupted(f"received {self._received} of {self._expected} bytes")


def find_extension(url: str) -> str | None:
    """Return the extension at the end of a URL's path, in lower case."""
    name = urlsplit(url).path.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else None


def _require_unambiguous(url: str) -> None:
    """Refuse a URL in which two parsers see different hosts."""
    try:
        guarded, connected = urlsplit(url), parse_url(url)
        hosts = (guarded.hostname or "").lower(), (connected.host or "").strip("[]").lower()
        same = hosts[0] == hosts[1] and guarded.port == connected.port
    except ValueError as error:  # "Invalid IPv6 URL", an invalid port
        raise DownloadRefused(f"invalid URL: {error}") from error
    if guarded.scheme not in ("http", "https"):
        raise DownloadRefused("only http and https are allowed")
    if not connected.host or not same:
        raise DownloadRefused("the URL is ambiguous")


def _classify_response(status: int, headers: Mapping[str, str], now: datetime) -> MoorageError | None:
    message = f"the server returned {status}"
    if status in _GONE:
        return OutputGone(message)
    if 400 <= status < 500 and status not in _RETRYABLE:
        return DownloadRefused(message)
    if not 200 <= status < 300 or status in _WITHOUT_FILE:
        wait = parse_retry_after(headers.get("Retry-After"), now)
        return DownloadInterrupted(message, retry_after=wait, event_kind="source_unavailable")
    if status == 206 and _parse_range_size(headers) is None:
        return DownloadInterrupted(f"{message} with a part of the file", event_kind="source_unavailable")
    return None


def _parse_range_size(headers: Mapping[str, str]) -> int | None:
    """Return the size of the file if the range of a 206 is all of it ("bytes 0-99/100"), else None."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return int(match[2]) if match and int(match[1]) + 1 == int(match[2]) else None
