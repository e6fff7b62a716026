"""What /metrics shows of the downloads of a host: each response once, by how it ended, and every byte."""

from dataclasses import replace

import pytest

from moorage import metrics
from moorage.errors import DownloadInterrupted, DownloadRefused, OutputGone
from tests.integration.hostile_server import FAST, PNG, Server, drip, failure, fetch, ok, says


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _zero(monkeypatch):
    monkeypatch.setattr(metrics, "_hosts", set())
    metrics.DOWNLOADS.clear()
    metrics.DOWNLOAD_BYTES.clear()


def counted():
    """Return the downloads by status, and the bytes."""
    statuses, sizes = (
        [sample for family in counter.collect() for sample in family.samples]
        for counter in (metrics.DOWNLOADS, metrics.DOWNLOAD_BYTES)
    )
    return {sample.labels["status"]: sample.value for sample in statuses}, sum(sample.value for sample in sizes)


def test_a_whole_file_behind_a_redirect_is_a_success(server):
    """The host that redirects does not fail: the query leaves 3xx out."""
    server.answers["/a"] = says("HTTP/1.1 302 Found\nLocation: /b\nContent-Length: 0\n")
    server.answers["/b"] = ok(PNG)

    fetch(server, "/a")

    assert counted() == ({"3xx": 1, "2xx": 1}, len(PNG))


def test_a_slow_drip_is_interrupted(server):
    """A host that trickles every file is one that fails, and its bytes were received."""
    server.answers["/"] = drip(server)

    failure(DownloadInterrupted, server, limits=replace(FAST, slow_after_seconds=0.5))

    statuses, received = counted()
    assert statuses == {"interrupted": 1}
    assert received > 0


@pytest.mark.parametrize(
    ("answer", "error", "statuses", "received"),
    [
        (says("HTTP/1.1 200 OK\nContent-Length: 5000\n", PNG[:600]), DownloadInterrupted, {"interrupted": 1}, 600),
        (says("HTTP/1.1 200 OK\nConnection: close\n", PNG), DownloadRefused, {"interrupted": 1}, None),
        (says("HTTP/1.1 202 Accepted\nContent-Length: 0\n"), DownloadInterrupted, {"interrupted": 1}, 0),
        (says("HTTP/1.1 404 Not Found\nContent-Length: 0\n"), OutputGone, {"4xx": 1}, 0),
        (says("HTTP/1.1 503 Busy\nContent-Length: 0\n"), DownloadInterrupted, {"5xx": 1}, 0),
        (says("nonsense\n"), DownloadInterrupted, {"interrupted": 1}, 0),
    ],
    ids=["cut", "too large", "without the file", "gone", "busy", "no response"],
)
def test_a_download_that_fails_is_counted_once(server, answer, error, statuses, received):
    """The sum over the statuses is the number of responses."""
    server.answers["/"] = answer

    failure(error, server, limits=replace(FAST, image_max_bytes=5000, video_max_bytes=8000))

    assert counted()[0] == statuses
    assert received is None or counted()[1] == received
