"""Outputs of the stand-in as a downloader meets them: whole, in ranges, and with each fault."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from simulation.provider.client import Standin
from simulation.provider.faults import FAULTS
from tests.integration.standin_receiver import wait_for


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


def output(standin: Standin, fault: str | None = None, **script: Any) -> tuple[dict[str, Any], str]:
    """Make a prediction of one output with a fault; return it and the output's URL."""
    asked = {"duration_s": 0, "faults": {"0": fault} if fault else {}, **script}
    made = standin.create({"standin": asked})
    ended = wait_for(lambda: (p := standin.get(made["id"]))["completed_at"] and p)
    return ended, ended["output"][0]


def get(url: str, **more: Any) -> requests.Response:
    return requests.get(url, timeout=60, allow_redirects=False, **more)


def promised(standin: Standin, prediction: dict[str, Any]) -> dict[str, Any]:
    """Return the ledger's line about the prediction's one output."""
    lines = standin.ledger()["lines"]
    return next(line for line in lines if line["kind"] == "output" and line["prediction"] == prediction["id"])


def served(standin: Standin, prediction: dict[str, Any], count: int) -> list[tuple[int, bool]]:
    """Return (status, complete) of each request for the output, once there are `count`."""

    def look() -> list[tuple[int, bool]]:
        lines = [line for line in standin.ledger()["lines"] if line["kind"] == "served"]
        return [(line["status"], line["complete"]) for line in lines if line["prediction"] == prediction["id"]]

    return wait_for(lambda: len(found := look()) >= count and found)


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpeg_rotated", "webp", "avif", "gif"])
def test_a_whole_output_is_what_the_ledger_promises(standin: Standin, kind: str) -> None:
    """The hash in the ledger is the judge of what was kept."""
    prediction, url = output(standin, formats=[kind])

    answer = get(url)

    line = promised(standin, prediction)
    assert (line["url"], line["expected"], line["fault"]) == (url, "kept", None)
    assert line["sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert line["bytes"] == len(answer.content) == int(answer.headers["Content-Length"])
    assert line["content_type"] == answer.headers["Content-Type"] == f"image/{kind.removesuffix('_rotated')}"
    assert served(standin, prediction, 1) == [(200, True)]
    assert [prediction["id"], "output[0]"] in standin.ledger()["summary"]["served_whole"]


def test_ranges_and_head_are_answered(standin: Standin) -> None:
    """Object stores do; a resuming downloader relies on it."""
    _, url = output(standin)
    whole = get(url).content

    part, rest = get(url, headers={"Range": "bytes=10-19"}), get(url, headers={"Range": "bytes=100-"})
    beyond = get(url, headers={"Range": f"bytes={len(whole)}-"})
    head = requests.head(url, timeout=60)

    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
    assert rest.content == whole[100:]
    assert (beyond.status_code, beyond.content) == (416, b"")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(whole)))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("429_once", [429, 200]), ("500_twice", [500, 500, 200]), ("404_always", [404, 404]), ("500_always", [500, 500])],
)
def test_a_status_is_answered_as_often_as_it_says(standin: Standin, fault: str, expected: list[int]) -> None:
    """Once means once, always means always."""
    prediction, url = output(standin, fault)

    answers = [get(url) for _ in expected]

    assert [answer.status_code for answer in answers] == expected
    assert [status for status, _ in served(standin, prediction, len(expected))] == expected
    assert fault != "429_once" or answers[0].headers["Retry-After"] == "1"


@pytest.mark.parametrize("fault", ["truncated_once", "truncated_always", "reset_once"])
def test_a_body_breaks_off(standin: Standin, fault: str) -> None:
    """Shorter than announced, by an orderly close or a reset."""
    prediction, url = output(standin, fault)
    with pytest.raises(requests.RequestException) as caught:
        get(url)

    once = fault.endswith("_once")
    if once:
        assert hashlib.sha256(get(url).content).hexdigest() == promised(standin, prediction)["sha256"]
    else:
        with pytest.raises(requests.RequestException):
            get(url)

    assert served(standin, prediction, 2) == [(200, False), (200, once)]
    assert ("reset" in str(caught.value).lower()) == (fault == "reset_once")


def test_slow_comes_whole_and_slow_forever_does_not(standin: Standin) -> None:
    """One is to be waited for, the other is not."""
    prediction, url = output(standin, "slow")
    _, endless = output(standin, "slow_forever")

    since = time.monotonic()
    whole = get(url).content
    took = time.monotonic() - since
    with get(endless, stream=True) as answer:
        start = time.monotonic()
        answer.raw.read(5)
        rate = 5 / (time.monotonic() - start)

    assert hashlib.sha256(whole).hexdigest() == promised(standin, prediction)["sha256"]
    assert took >= 1.5
    assert rate < 20


def test_chunked_has_no_length_and_is_whole(standin: Standin) -> None:
    """A missing Content-Length is no error."""
    prediction, url = output(standin, "chunked")

    answer = get(url)

    assert "Content-Length" not in answer.headers
    assert hashlib.sha256(answer.content).hexdigest() == promised(standin, prediction)["sha256"]


def test_too_large_is_announced_and_endless_is_not(standin: Standin) -> None:
    """A limit must hold with and without a Content-Length."""
    _, large = output(standin, "too_large")
    _, endless = output(standin, "endless")

    with get(large, stream=True) as announced, get(endless, stream=True) as unannounced:
        got = sum(len(piece) for piece in announced.iter_content(2**20))
        sizes = itertools.accumulate(len(piece) for piece in unannounced.iter_content(2**20))
        more = next(size for size in sizes if size > 60_000_000)
        length = announced.headers["Content-Length"]

    assert (got, length) == (60_000_000, "60000000")
    assert more > 60_000_000  # and more would come: it is we who stop
    assert "Content-Length" not in unannounced.headers


def test_gone_then_fresh_needs_a_poll(standin: Standin) -> None:
    """A dead URL of a living file: the provider is asked once for a fresh one."""
    prediction, url = output(standin, "gone_then_fresh")
    assert standin.get(prediction["id"])["output"] == [url]
    assert get(url).status_code == 404

    fresh = standin.get(prediction["id"])["output"][0]

    assert fresh != url
    assert get(url).status_code == 404
    assert hashlib.sha256(get(fresh).content).hexdigest() == promised(standin, prediction)["sha256"]
    assert promised(standin, prediction)["expected"] == "kept"


def test_redirects_lead_where_they_say(standin: Standin) -> None:
    """One good hop, a loop, and two addresses nobody may be led to."""
    prediction, good = output(standin, "redirect")
    _, loop = output(standin, "redirect_loop")
    _, private = output(standin, "private_redirect")
    _, metadata = output(standin, "metadata_redirect")

    followed = requests.get(good, timeout=60)

    assert hashlib.sha256(followed.content).hexdigest() == promised(standin, prediction)["sha256"]
    with pytest.raises(requests.TooManyRedirects):
        requests.get(loop, timeout=60)
    assert get(private).headers["Location"].startswith("http://127.0.0.1:")
    assert not get(private).headers["Location"].startswith(standin.url)
    assert get(metadata).headers["Location"].startswith("http://169.254.169.254/")


def test_the_trap_tells_who_was_led_to_it(standin: Standin) -> None:
    """A guard that is open must show, token and all; the trap even gives a good picture."""
    _, redirecting = output(standin, "private_redirect")
    _, private = output(standin, "private_url")
    before = standin.ledger()["summary"]["traps"]

    first = requests.get(redirecting, timeout=60)
    second = get(private, headers={"Authorization": "Bearer leaked"})

    ledger = standin.ledger()
    visits = [line for line in ledger["lines"] if line["kind"] == "trap"]
    assert first.content.startswith(b"\x89PNG")
    assert second.status_code == 200
    assert ledger["summary"]["traps"] == before + 2
    assert [visit["token_sent"] for visit in visits[-2:]] == [False, True]


def test_another_host_is_named(standin: Standin) -> None:
    """An allow-list of hosts must have something to refuse."""
    _, url = output(standin, "other_host")

    assert url.startswith("http://files.example.invalid/")


@pytest.mark.parametrize("fault", ["half_file", "corrupt", "web_page", "bomb", "empty"])
def test_bad_bytes_arrive_whole_and_are_expected_dead(standin: Standin, fault: str) -> None:
    """The transport is fine; only looking at the bytes can tell."""
    prediction, url = output(standin, fault)

    answer = get(url)

    line = promised(standin, prediction)
    assert (answer.status_code, line["expected"], line["fault"]) == (200, "dead", fault)
    assert line["sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["Content-Type"] == line["content_type"]
    assert (fault == "web_page") == answer.headers["Content-Type"].startswith("text/html")
    assert (fault == "empty") == (answer.content == b"")


def test_an_expired_url_is_404(standin: Standin) -> None:
    """What was not fetched in time is gone."""
    prediction, url = output(standin, output_life_s=3)

    wait_for(lambda: get(url).status_code == 404)

    assert served(standin, prediction, 1)[-1] == (404, False)


def test_one_prediction_carries_a_fault_on_each_output(standin: Standin) -> None:
    """Siblings of a bad file go on: the ledger sorts them."""
    names = list(FAULTS)
    made = standin.create(
        {"standin": {"outputs": len(names) + 1, "faults": {str(i): name for i, name in enumerate(names)}}}
    )
    wait_for(lambda: standin.get(made["id"])["completed_at"])

    expected = standin.ledger()["summary"]["expected"]
    mine = {e: [line for line in lines if line["prediction"] == made["id"]] for e, lines in expected.items()}

    assert {line["fault"] for line in mine["dead"]} == {name for name, f in FAULTS.items() if f.expected == "dead"}
    assert len(mine["kept"]) + len(mine["dead"]) == len(names) + 1
    assert mine["preview"] == []
