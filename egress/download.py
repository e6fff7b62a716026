"""Bytes from a URL, from a `data:` URI or from our own storage, whole and hashed in an unnamed temporary file."""

import contextlib
import http.client
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.util import parse_url

from egress import spool
from egress.sockets import call_while_waiting
from media.limits import Limits
from moorage import logs
from moorage.errors import DownloadInterrupted, DownloadRefused, MoorageError, OutputGone
from moorage.model import FetchedFile
from moorage.retry_after import parse_retry_after

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

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GONE: Final = frozenset({401, 403, 404, 410})
_LATER: Final = frozenset({408, 425, 429})


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
    Download a URL; the file lives as long as the `with` block. Redirects are followed here, each hop checked anew.

    Args:
        session: from `Egress.session`, which refuses private addresses.
        headers_for: the headers for one URL; asked again for each hop, so that a token stays with its hosts.
        allows: None, or why a URL must not be fetched. It is given the URL exactly as it will be requested.
        pulse: called at least each chunk and each second of silence; what it raises ends the download.

    Raises:
        DownloadInterrupted: no connection, too slow, cut, 408, 425, 429, 5xx; may work later.
        OutputGone: 401, 403, 404 or 410.
        DownloadRefused: a refused address or hop, too many redirects, too large, encoded, any other 4xx.
        DiskFull: the temporary folder is full or broken.
    """
    with spool.open_spool(limits) as file:
        run = _Download(session, limits, file, on_progress)
        with run.translate_errors(), call_while_waiting(run.check_limits):
            fetched = run.download(url, headers_for, check_url)
        yield fetched


@contextlib.contextmanager
def spool_bytes(data: bytes, limits: Limits) -> Iterator[FetchedFile]:
    """Give the bytes of a `data:` URI the form of a download."""
    with spool_chunks(iter((data,)), limits, lambda: None) as fetched:
        yield fetched


@contextlib.contextmanager
def spool_chunks(chunks: Iterator[bytes], limits: Limits, on_progress: ProgressCallback) -> Iterator[FetchedFile]:
    """Give a file that arrives in chunks (from our private bucket) the form of a download."""
    with spool.open_spool(limits) as file:
        for chunk in chunks:
            on_progress()
            file.write(chunk)
        yield file.finish()


class _Download:
    """One download: its clock, its facts and its steps."""

    def __init__(self, session: requests.Session, limits: Limits, file: spool.Spool, pulse: ProgressCallback) -> None:
        self._session, self._limits, self._file, self._pulse = session, limits, file, pulse
        self._started = time.monotonic()
        self._body_started: float | None = None
        self._status: int | None = None
        self._url = ""

    def download(self, url: str, headers_for: HeadersFor, allows: UrlCheck) -> FetchedFile:
        """Follow redirects to a body and spool it."""
        for _ in range(self._limits.max_redirects + 1):
            with contextlib.closing(self._get(url, headers_for, allows)) as response:
                target = self._redirect(response)
                if target is None:
                    return self._body(response)
                url = _joined(self._url, target)
        raise DownloadRefused(f"more than {self._limits.max_redirects} redirects", facts=self.facts())

    def check_limits(self) -> None:
        """Pass the pulse on, and hold the clock against the limits."""
        self._pulse()
        now, limits = time.monotonic(), self._limits
        if now - self._started > limits.total_seconds:
            raise DownloadInterrupted(f"not done within {limits.total_seconds:g} s", facts=self.facts())
        spent = now - self._body_started if self._body_started else 0.0
        if spent > limits.slow_after_seconds and self._file.size_bytes < spent * limits.min_bytes_per_second:
            raise DownloadInterrupted(f"slower than {limits.min_bytes_per_second} bytes a second", facts=self.facts())

    def facts(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "url": logs.redact_url(self._url),
            "status": self._status,
            "bytes": self._file.size_bytes,
            "expected": self._file.expected_bytes,
            "seconds": round(time.monotonic() - self._started, 3),
        }

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn the errors of the HTTP libraries into ours, and add the facts to ours."""
        try:
            yield
        except (DownloadRefused, DownloadInterrupted) as error:
            error.facts = {**self.facts(), **error.facts}
            raise
        except _BAD_URL as error:
            raise DownloadRefused(f"not a usable URL: {error}", facts=self.facts()) from error
        except _BROKEN as error:
            raise DownloadInterrupted(_cause(error), facts=self.facts(), event_kind="source_interrupted") from error

    def _get(self, url: str, headers_for: HeadersFor, allows: UrlCheck) -> requests.Response:
        self.check_limits()
        self._url = url
        prepared = self._session.prepare_request(requests.Request("GET", url))
        self._url = url = prepared.url or ""
        _unambiguous(url)
        if why := allows(url):
            raise DownloadRefused(why, facts=self.facts())
        prepared.prepare_headers({**self._session.headers, **headers_for(url), "Accept-Encoding": "identity"})
        # The adapter and not the session: a session reads a redirect's body to its end, decoded, of any size.
        timeout = (self._limits.connect_seconds, self._limits.idle_seconds)
        return self._session.get_adapter(url).send(prepared, stream=True, timeout=timeout)

    def _redirect(self, response: requests.Response) -> str | None:
        self._status = response.status_code
        if response.status_code not in REDIRECTS or "Location" not in response.headers:
            return None
        return self._session.get_redirect_target(response)

    def _body(self, response: requests.Response) -> FetchedFile:
        now = datetime.now(UTC)
        error = classify_response(response.status_code, response.headers, now=now, facts=self.facts())
        if error is not None:
            raise error
        raw: urllib3.HTTPResponse = response.raw
        self._file.set_expected_bytes(raw.length_remaining)
        self._body_started = time.monotonic()
        while chunk := raw.read1(CHUNK_BYTES, decode_content=False):
            self.check_limits()
            self._file.write(chunk)
        self._whole()
        return self._file.finish(response.headers.get("Content-Type"))

    def _whole(self) -> None:
        got, expected = self._file.size_bytes, self._file.expected_bytes
        if expected is not None and got != expected:
            raise DownloadInterrupted(f"{got} of {expected} bytes came", facts=self.facts())
        if not got:
            raise DownloadInterrupted("an empty answer", facts=self.facts())


def _joined(base: str, target: str) -> str:
    try:
        return urljoin(base, target)
    except ValueError as error:
        raise DownloadRefused(f"a redirect to what is no URL: {error}") from error


def _unambiguous(url: str) -> None:
    """Refuse a URL in which a parser that guards and the one that connects see different hosts."""
    try:
        seen, used = urlsplit(url), parse_url(url)
        same = (seen.hostname or "").lower() == (used.host or "").strip("[]").lower() and seen.port == used.port
    except ValueError as error:  # "Invalid IPv6 URL", a port that is no number
        raise DownloadRefused(f"not a usable URL: {error}") from error
    if seen.scheme not in ("http", "https"):
        raise DownloadRefused("only http and https are fetched")
    if not used.host or not same:
        raise DownloadRefused("the URL can be read in two ways")


def _cause(error: BaseException) -> str:
    """Say what broke, from the innermost cause: the wrapping of three libraries says little."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"the download broke: {type(error).__name__}: {error}"[:500]


def classify_response(
    status: int, headers: Mapping[str, str], *, now: datetime, facts: Mapping[str, Any]
) -> MoorageError | None:
    """Return the error that an answer amounts to, or None for a body that can be read."""
    if status in _GONE:
        return OutputGone(f"the server answered {status}", facts=facts)
    if 400 <= status < 500 and status not in _LATER:
        return DownloadRefused(f"the server answered {status}", facts=facts)
    if status != 200:
        wait = parse_retry_after(headers.get("Retry-After"), now)
        return DownloadInterrupted(
            f"the server answered {status}", facts=facts, retry_after=wait, event_kind="source_unavailable"
        )
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):  # asked for identity; a small body could unpack to any size
        return DownloadRefused(f"the body is {encoding}-encoded, which was not asked for", facts=facts)
    return None
