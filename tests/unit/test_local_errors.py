"""Errors of this machine: found behind the errors of libraries, and told apart from those of files and hosts."""

import asyncio
import errno
import os
import re
import socket
import ssl
from pathlib import Path

import pytest
import requests
import urllib3

import web.app
from moorage import metrics
from moorage.errors import DatabaseUnavailable, DownloadInterrupted, InvalidMedia, NotSubmitted, StorageUnavailable
from moorage.local_errors import LOCAL_ERRNOS, find_local_failure
from moorage.settings import Settings
from receiver import app
from tests.unit.test_lifecycle import after

WEBHOOK = {"type": "http", "method": "POST", "path": "/webhooks/replicate", "headers": [], "query_string": b""}
ANY = Settings(_env_file=None, database_url="postgresql://u:p@127.0.0.1/d", broker_url="redis://127.0.0.1/0")
PAGE = Path(__file__).resolve().parents[2] / "docs/reference/errors.md"


def caused(error, cause):
    """Return an error raised from another."""
    try:
        raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize("code", sorted(LOCAL_ERRNOS))
def test_an_error_of_this_machine_is_found_behind_a_library(code):
    """A download that finds no file descriptor says nothing about its server."""
    innermost = caused(urllib3.exceptions.HTTPError("no socket"), OSError(code, os.strerror(code)))
    error = caused(DownloadInterrupted("interrupted"), caused(requests.ConnectionError(innermost), innermost))

    decision = after(error, errors=500)

    assert not decision.is_counted
    assert decision.kind == "disk_failed"
    assert errno.errorcode[code] in decision.reason


@pytest.mark.parametrize(
    "cause",
    [
        OSError("broken data stream when reading image file"),  # Pillow
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        socket.gaierror(socket.EAI_NONAME, "unknown host"),
        ssl.SSLError(ssl.SSL_ERROR_SYSCALL, "violation of protocol"),  # 5, as EIO
        TypeError("ours"),
    ],
    ids=repr,
)
def test_an_error_of_a_file_or_a_host_is_none_of_this_machine(cause):
    """They are counted: else a file that cannot be decoded would be downloaded for ever."""
    assert find_local_failure(caused(DownloadInterrupted("interrupted"), cause)) is None
    assert after(caused(DownloadInterrupted("interrupted"), cause)).is_counted


def test_a_good_file_is_not_refused_for_an_error_of_this_machine():
    """The decoder could not read it; it was not the file that was broken."""
    assert not after(caused(InvalidMedia("not decodable"), OSError(errno.EIO, "Input/output error"))).is_counted
    assert not after(caused(NotSubmitted("no connection"), OSError(errno.EMFILE, "Too many open files"))).is_counted


@pytest.mark.parametrize("error", [StorageUnavailable("away"), DatabaseUnavailable("away")])
def test_an_outage_of_a_server_keeps_its_name(error):
    """The events tell what failed."""
    decision = after(caused(error, OSError(errno.ENOMEM, "Cannot allocate memory")))

    assert (decision.kind, decision.is_counted) == (error.event_kind, False)


def test_missing_memory_is_none_of_the_file():
    """A decoder that gets no memory within our limits needs a larger machine, not another file."""
    assert not after(caused(InvalidMedia("not decodable"), MemoryError())).is_counted


def test_the_receiver_answers_503_while_the_machine_is_short_of_descriptors(monkeypatch):
    """After a 500 some providers send a webhook no more; 503 says that it may be sent again."""
    receiver = app.Receiver(ANY)
    monkeypatch.setattr(receiver, "_handle_webhook", lambda *_: fail(OSError(errno.EMFILE, "Too many open files")))

    response = asyncio.run(receiver._handle_request(WEBHOOK, None))

    assert (response.status, dict(response.headers)[b"retry-after"]) == (503, b"1")


@pytest.mark.parametrize(("error", "status"), [(OSError(errno.EMFILE, "Too many open files"), 503), (TypeError(), 500)])
def test_a_webhook_that_fails_in_moorage_is_counted(monkeypatch, error, status):
    """A bug in a verifier turns every webhook away: the alert on unavailable requests must fire."""
    receiver = app.Receiver(ANY)
    monkeypatch.setattr(receiver._webhooks, "receive", lambda *_, **__: fail(error))
    before = counted(metrics.WEBHOOKS_UNAVAILABLE.labels("internal"))

    response = asyncio.run(receiver._handle_request(WEBHOOK, None))

    assert response.status == status
    assert counted(metrics.WEBHOOKS_UNAVAILABLE.labels("internal")) == before + 1


def counted(counter):
    return counter._value.get()


def test_only_posts_are_refused_webhooks():
    """A scanner's GET is none, and is not among the requests that the share is of."""
    receiver = app.Receiver(ANY)
    before = counted(metrics.WEBHOOKS_REFUSED.labels("not_found"))

    statuses = [
        asyncio.run(receiver._handle_request({**WEBHOOK, "method": method, "path": "/webhooks/x"}, None)).status
        for method in ("GET", "HEAD", "POST")
    ]

    assert statuses == [404, 404, 404]
    assert counted(metrics.WEBHOOKS_REFUSED.labels("not_found")) == before + 1


@pytest.mark.parametrize(("error", "status"), [(OSError(errno.EMFILE, "Too many open files"), 503), (TypeError(), 500)])
def test_the_api_answers_503_while_the_machine_is_short_of_descriptors(error, status):
    """A bug remains a 500."""
    before = counted(metrics.API_UNAVAILABLE)

    assert asyncio.run(web.app._on_unexpected_error(None, error)).status_code == status
    assert counted(metrics.API_UNAVAILABLE) == before + 1


async def fail(error):
    raise error


def test_an_error_raised_in_place_of_another_hides_it():
    """`from None` states that the first one does not matter."""
    with pytest.raises(DownloadInterrupted) as caught:  # noqa: PT012 (the two errors belong together)
        try:
            raise OSError(errno.EIO, "Input/output error")
        except OSError:
            raise DownloadInterrupted("a second one") from None

    assert find_local_failure(caught.value) is None


def test_the_documented_errno_values_are_those_of_the_code():
    """One table, in the code and in the documentation."""
    rows = re.findall(r"^\| `(E[A-Z]+)` \| .*? \| `(\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert dict(rows) == {errno.errorcode[code]: failure.__name__ for code, failure in LOCAL_ERRNOS.items()}
