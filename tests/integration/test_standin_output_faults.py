"""Outputs of the stand-in as a downloader receives them: whole, and with each fault."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from simulation.provider.script import FAULTS
from tests.integration.standin_receiver import wait_for
from tests.support.standin import Standin


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


def create_output(standin: Standin, fault: str | None = None, **script: Any) -> tuple[dict[str, Any], str]:
    """Create a prediction of one output with a fault; return it and the output's URL."""
    fields = {"duration_s": 0, "faults": {"0": fault} if fault else {}, **script}
    created = standin.create_prediction({"standin": fields})
    ended = wait_for(lambda: (p := standin.get_prediction(created["id"]))["completed_at"] and p)
    return ended, ended["output"][0]


def get(url: str, **more: Any) -> requests.Response:
    return requests.get(url, timeout=60, allow_redirects=False, **more)


def ledger_line(standin: Standin, prediction: dict[str, Any]) -> dict[str, Any]:
    """Return the ledger's line of the prediction's only output."""
    lines = standin.get_ledger()["lines"]
    return next(line for line in lines if line["kind"] == "output" and line["prediction"] == prediction["id"])


def served(standin: Standin, prediction: dict[str, Any], count: int) -> list[tuple[int, bool]]:
    """Return (status, complete) of each request for the output, once there are `count`."""

    def read() -> list[tuple[int, bool]]:
        lines = [line for line in standin.get_ledger()["lines"] if line["kind"] == "served"]
        return [(line["status"], line["complete"]) for line in lines if line["prediction"] == prediction["id"]]

    return wait_for(lambda: len(lines := read()) >= count and lines)


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpeg_rotated", "webp", "avif", "gif"])
def test_a_whole_output_matches_the_ledger(standin: Standin, kind: str) -> None:
    """Kept files are compared with the hash in the ledger."""
    prediction, url = create_output(standin, formats=[kind])

    response = get(url)

    line = ledger_line(standin, prediction)
    assert (line["url"], line["expected"], line["fault"]) == (url, "kept", None)
    assert line["sha256"] == hashlib.sha256(response.content).hexdigest()
    assert line["bytes"] == len(response.content) == int(response.headers["Content-Length"])
    assert line["content_type"] == response.headers["Content-Type"] == f"image/{kind.removesuffix('_rotated')}"
    assert served(standin, prediction, 1) == [(200, True)]
    assert [prediction["id"], "output[0]"] in standin.get_ledger()["summary"]["served_whole"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("429_once", [429, 200]), ("500_twice", [500, 500, 200]), ("404_always", [404, 404]), ("500_always", [500, 500])],
)
def test_an_error_status_is_returned_as_often_as_defined(standin: Standin, fault: str, expected: list[int]) -> None:
    """The number of failed attempts must be exact."""
    prediction, url = create_output(standin, fault)

    responses = [get(url) for _ in expected]

    assert [response.status_code for response in responses] == expected
    assert [status for status, _ in served(standin, prediction, len(expected))] == expected
    assert fault != "429_once" or responses[0].headers["Retry-After"] == "1"


@pytest.mark.parametrize("fault", ["truncated_once", "truncated_always", "reset_once"])
def test_a_body_is_truncated(standin: Standin, fault: str) -> None:
    """Shorter than announced, by an orderly close or a reset."""
    prediction, url = create_output(standin, fault)
    with pytest.raises(requests.RequestException) as caught:
        get(url)

    once = fault.endswith("_once")
    if once:
        assert hashlib.sha256(get(url).content).hexdigest() == ledger_line(standin, prediction)["sha256"]
    else:
        with pytest.raises(requests.RequestException):
            get(url)

    assert served(standin, prediction, 2) == [(200, False), (200, once)]
    assert ("reset" in str(caught.value).lower()) == (fault == "reset_once")


def test_a_slow_transfer_is_whole_and_an_endless_one_is_not(standin: Standin) -> None:
    """A downloader must wait for the first, and abort the second."""
    prediction, url = create_output(standin, "slow")
    _, endless = create_output(standin, "slow_forever")

    started = time.monotonic()
    whole = get(url).content
    took = time.monotonic() - started
    with get(endless, stream=True) as response:
        start = time.monotonic()
        response.raw.read(5)
        rate = 5 / (time.monotonic() - start)

    assert hashlib.sha256(whole).hexdigest() == ledger_line(standin, prediction)["sha256"]
    assert took >= 1.5
    assert rate < 20


def test_a_chunked_transfer_has_no_length_and_is_whole(standin: Standin) -> None:
    """A missing Content-Length is no error."""
    prediction, url = create_output(standin, "chunked")

    response = get(url)

    assert "Content-Length" not in response.headers
    assert hashlib.sha256(response.content).hexdigest() == ledger_line(standin, prediction)["sha256"]


def test_too_large_has_a_length_and_endless_has_none(standin: Standin) -> None:
    """A limit must hold with and without a Content-Length."""
    _, large = create_output(standin, "too_large")
    _, endless = create_output(standin, "endless")

    with get(large, stream=True) as announced, get(endless, stream=True) as unannounced:
        received = sum(len(piece) for piece in announced.iter_content(2**20))
        sizes = itertools.accumulate(len(piece) for piece in unannounced.iter_content(2**20))
        more = next(size for size in sizes if size > 60_000_000)
        length = announced.headers["Content-Length"]

    assert (received, length) == (60_000_000, "60000000")
    assert more > 60_000_000  # the client stops, not the server
    assert "Content-Length" not in unannounced.headers


def test_a_renewed_url_requires_a_poll(standin: Standin) -> None:
    """The URL is dead, the file is not: a poll returns a new URL."""
    prediction, url = create_output(standin, "gone_then_fresh")
    assert standin.get_prediction(prediction["id"])["output"] == [url]
    assert get(url).status_code == 404

    renewed = standin.get_prediction(prediction["id"])["output"][0]

    assert renewed != url
    assert get(url).status_code == 404
    assert hashlib.sha256(get(renewed).content).hexdigest() == ledger_line(standin, prediction)["sha256"]
    assert ledger_line(standin, prediction)["expected"] == "kept"


def test_redirects_have_their_targets(standin: Standin) -> None:
    """One valid redirect, a loop, and two addresses that must not be requested."""
    prediction, good = create_output(standin, "redirect")
    _, loop = create_output(standin, "redirect_loop")
    _, private = create_output(standin, "private_redirect")
    _, metadata = create_output(standin, "metadata_redirect")

    followed = requests.get(good, timeout=60)

    assert hashlib.sha256(followed.content).hexdigest() == ledger_line(standin, prediction)["sha256"]
    with pytest.raises(requests.TooManyRedirects):
        requests.get(loop, timeout=60)
    assert get(private).headers["Location"].startswith("http://127.0.0.1:")
    assert not get(private).headers["Location"].startswith(standin.url)
    assert get(metadata).headers["Location"].startswith("http://169.254.169.254/")


def test_the_trap_records_requests(standin: Standin) -> None:
    """An open guard must be noticed, with the token; the trap even returns a valid picture."""
    _, redirecting = create_output(standin, "private_redirect")
    _, private = create_output(standin, "private_url")
    before = standin.get_ledger()["summary"]["traps"]

    first = requests.get(redirecting, timeout=60)
    second = get(private, headers={"Authorization": "Bearer leaked"})
    third = requests.head(private, timeout=60)

    ledger = standin.get_ledger()
    requests_ = [line for line in ledger["lines"] if line["kind"] == "trap"]
    assert first.content.startswith(b"\x89PNG")
    assert (second.status_code, third.status_code) == (200, 200)
    assert ledger["summary"]["traps"] == before + 3
    assert [request["token_sent"] for request in requests_[-3:]] == [False, True, False]


def test_a_url_can_have_a_foreign_host(standin: Standin) -> None:
    """An allow-list of hosts must have something to reject."""
    _, url = create_output(standin, "other_host")

    assert url.startswith("http://files.example.invalid/")


@pytest.mark.parametrize("fault", ["half_file", "corrupt", "web_page", "bomb", "empty"])
def test_invalid_bytes_are_transferred_whole_and_expected_dead(standin: Standin, fault: str) -> None:
    """Only the bytes show the fault, not the transfer."""
    prediction, url = create_output(standin, fault)

    response = get(url)

    line = ledger_line(standin, prediction)
    assert (response.status_code, line["expected"], line["fault"]) == (200, "dead", fault)
    assert line["sha256"] == hashlib.sha256(response.content).hexdigest()
    assert response.headers["Content-Type"] == line["content_type"]
    assert (fault == "web_page") == response.headers["Content-Type"].startswith("text/html")
    assert (fault == "empty") == (response.content == b"")


def test_an_expired_url_is_404(standin: Standin) -> None:
    """A file that was not downloaded in time is gone."""
    prediction, url = create_output(standin, output_life_s=3)

    wait_for(lambda: get(url).status_code == 404)

    assert served(standin, prediction, 1)[-1] == (404, False)


def test_each_output_of_a_prediction_can_have_its_own_fault(standin: Standin) -> None:
    """Other outputs of the prediction are not affected."""
    names = list(FAULTS)
    created = standin.create_prediction(
        {"standin": {"outputs": len(names) + 1, "faults": {str(i): name for i, name in enumerate(names)}}}
    )
    wait_for(lambda: standin.get_prediction(created["id"])["completed_at"])

    expected = standin.get_ledger()["summary"]["expected"]
    mine = {e: [line for line in lines if line["prediction"] == created["id"]] for e, lines in expected.items()}

    assert {line["fault"] for line in mine["dead"]} == {name for name, f in FAULTS.items() if f.expected == "dead"}
    assert len(mine["kept"]) + len(mine["dead"]) == len(names) + 1
    assert mine["preview"] == []
