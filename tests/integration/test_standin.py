"""The stand-in's API and its life as a process, over real HTTP."""

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from simulation.provider.client import Standin, StandinError
from tests.integration.standin_receiver import wait_for

FIELDS = {
    *("id", "model", "version", "status", "input", "output", "error", "logs", "metrics", "created_at", "started_at"),
    *("completed_at", "data_removed", "deadline", "deployment", "source", "urls", "webhook", "webhook_events_filter"),
}


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


def ask(standin: Standin, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
    bearer = {"Authorization": f"Bearer {standin.token}", **headers}
    return requests.request(method, f"{standin.url}{path}", json=body, headers=bearer, timeout=60)


def run(standin: Standin, **script: Any) -> dict[str, Any]:
    """Make a prediction and return it at its end."""
    made = standin.create({"standin": {"duration_s": 0, **script}})
    return wait_for(lambda: (p := standin.get(made["id"]))["completed_at"] and p)


def test_a_prediction_has_every_field_and_walks_forward(standin: Standin) -> None:
    """Parsers that were written for the real object must find all of it."""
    made = standin.create({"prompt": "a pier", "standin": {"duration_s": 3, "outputs": 2}})

    running = wait_for(lambda: (p := standin.get(made["id"]))["status"] == "processing" and p)
    ended = wait_for(lambda: (p := standin.get(made["id"]))["completed_at"] and p)

    assert set(made) == set(running) == set(ended) == FIELDS
    assert (made["status"], made["output"], made["started_at"]) == ("starting", None, None)
    assert (ended["status"], len(ended["output"]), ended["error"]) == ("succeeded", 2, None)
    assert made["created_at"] < ended["started_at"] < ended["completed_at"]
    assert 0.3 < ended["metrics"]["predict_time"] < ended["metrics"]["total_time"]
    assert ended["input"]["prompt"] == "a pier"


@pytest.mark.parametrize("status", ["failed", "canceled", "aborted"])
def test_a_bad_end_has_its_status_and_no_files(standin: Standin, status: str) -> None:
    """All four terminal words of the provider can be had; aborted never starts."""
    ended = run(standin, status=status)

    assert (ended["status"], ended["output"]) == (status, None)
    assert (ended["started_at"] is None) == (status == "aborted")
    assert (ended["error"] is None) == (status == "canceled")


def test_a_failed_prediction_shows_previews_that_are_not_expected(standin: Standin) -> None:
    """Files in a failed answer are previews: the ledger must not ask for them."""
    ended = run(standin, status="failed", outputs=4)

    lines = standin.ledger()["summary"]["expected"]["preview"]

    assert len(ended["output"]) == 2
    assert [line["url"] for line in lines if line["prediction"] == ended["id"]] == ended["output"]


def test_one_that_never_ends_can_be_cancelled(standin: Standin) -> None:
    """Deadlines and cancellation need a run that does not stop by itself."""
    made = standin.create({"standin": {"duration_s": 0, "status": "processing"}})
    wait_for(lambda: standin.get(made["id"])["status"] == "processing")

    cancelled = standin.cancel(made["id"])

    assert cancelled["status"] == standin.get(made["id"])["status"] == "canceled"
    assert standin.cancel(made["id"])["completed_at"] == cancelled["completed_at"]


def test_output_takes_every_shape(standin: Standin) -> None:
    """Models answer with whatever JSON they declare."""
    single = run(standin, shape="string", outputs=2)["output"]
    nested = run(standin, shape="nested", outputs=2)["output"]
    inline = run(standin, shape="data", formats=["png", "jpeg"], outputs=2)["output"]

    assert single.startswith(f"{standin.url}/out/")
    assert [set(image) for image in nested["images"]] == [{"url", "safe"}] * 2
    assert nested["seed"] > 2**53
    assert [uri.partition(",")[0] for uri in inline] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert base64.b64decode(inline[0].partition(",")[2]).startswith(b"\x89PNG")
    assert isinstance(run(standin, shape="text")["output"], str)
    assert run(standin, shape="null")["output"] is None
    assert run(standin, outputs=0)["output"] == []


def test_the_ledger_names_outputs_by_their_place_and_hash(standin: Standin) -> None:
    """A comparison needs both: which output it is, and which bytes."""
    ended = run(standin, shape="nested", outputs=2, seed=11)
    again = run(standin, shape="list", outputs=2, seed=11)

    kept = standin.ledger()["summary"]["expected"]["kept"]
    first = [line for line in kept if line["prediction"] == ended["id"]]
    second = [line for line in kept if line["prediction"] == again["id"]]

    assert [line["path"] for line in first] == ["output.images[0].url", "output.images[1].url"]
    assert [line["path"] for line in second] == ["output[0]", "output[1]"]
    assert [line["sha256"] for line in first] == [line["sha256"] for line in second]


def test_lists_are_paged_newest_first(standin: Standin) -> None:
    """Orphans after an ambiguous create are found by listing; 100 a page."""
    made = [standin.create({"standin": {"status": "aborted", "duration_s": 0}}) for _ in range(205)]
    since = {"created_after": made[0]["created_at"], "created_before": made[-1]["created_at"]}

    url, pages = f"{standin.url}/v1/predictions?{urlencode(since)}", []
    while url:
        pages.append(requests.get(url, headers={"Authorization": f"Bearer {standin.token}"}, timeout=60).json())
        url = pages[-1]["next"]
    back = ask(standin, "GET", pages[2]["previous"].removeprefix(standin.url)).json()

    assert [len(page["results"]) for page in pages] == [100, 100, 4]
    ids = [prediction["id"] for page in pages for prediction in page["results"]]
    assert ids == [prediction["id"] for prediction in reversed(made[:-1])]
    assert pages[0]["previous"] is None
    assert back["results"] == pages[1]["results"]


def test_a_wrong_token_is_refused_everywhere(standin: Standin) -> None:
    """A client that forgets its token must notice here, not in production."""
    for path in ("/v1/predictions", "/v1/predictions/x", "/v1/webhooks/default/secret", "/standin/ledger"):
        for header in ("", "Bearer wrong", f"Token {standin.token}"):
            answer = ask(standin, "GET", path, Authorization=header)

            assert answer.status_code == 401
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert set(answer.json()) == {"title", "detail", "status"}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"input": {}}, 422, "version is required"),
        ({"version": "v"}, 422, "input is required"),
        ({"version": "v", "input": {}, "webhook": "ftp://x"}, 422, "webhook must be"),
        ({"version": "v", "input": {}, "webhook": "http://127.0.0.1:port/"}, 422, "webhook must be"),
        ({"version": "v", "input": {}, "webhook_events_filter": ["end"]}, 422, "webhook_events_filter"),
        ({"version": "v", "input": {"standin": {"faults": {"0": "oops"}}}}, 422, "'oops' is not known"),
        ([], 400, "not a JSON object"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(standin: Standin, body: Any, status: int, told: str) -> None:
    """Refused as the provider refuses, and nothing is made."""
    before = standin.ledger()["summary"]["predictions"]

    answer = ask(standin, "POST", "/v1/predictions", body)

    assert (answer.status_code, told in answer.json()["detail"]) == (status, True)
    assert standin.ledger()["summary"]["predictions"] == before


def test_official_models_need_no_version_and_unknown_things_are_404(standin: Standin) -> None:
    """The second door of the API, and the end of it."""
    made = ask(standin, "POST", "/v1/models/acme/pier/predictions", {"input": {}})

    assert (made.status_code, made.json()["model"], made.json()["version"]) == (201, "acme/pier", "hidden")
    assert ask(standin, "GET", "/v1/predictions/nobody").status_code == 404
    assert ask(standin, "POST", "/v1/predictions/nobody/cancel").status_code == 404
    assert ask(standin, "GET", "/v1/nothing").status_code == 404
    assert ask(standin, "GET", "/v1/webhooks/default/secret").json() == {"key": standin.secret}


def test_data_is_removed_when_its_life_ends(standin: Standin) -> None:
    """The answer that means lost, not failed."""
    ended = run(standin, output_life_s=3)

    removed = wait_for(lambda: (p := standin.get(ended["id"]))["data_removed"] and p)

    assert (removed["status"], removed["output"], removed["logs"]) == ("succeeded", None, None)
    assert requests.get(ended["output"][0], timeout=60).status_code == 404


def test_an_outage_answers_503_until_it_is_over(standin: Standin) -> None:
    """A provider that is away is not a prediction that failed."""
    ended = run(standin)
    standin.outage(60)

    assert ask(standin, "GET", f"/v1/predictions/{ended['id']}").status_code == 503
    assert requests.get(ended["output"][0], timeout=60).status_code == 200
    standin.outage(60, outputs=True)
    assert requests.get(ended["output"][0], timeout=60).status_code == 503

    standin.outage(0)
    assert standin.get(ended["id"])["status"] == "succeeded"


def test_files_of_a_folder_are_served_as_they_are(tmp_path: Path) -> None:
    """Real pictures and videos, byte for byte."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "b.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    (folder / "a.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("not served")

    with Standin(pictures=folder).start(tmp_path) as standin:
        ended = run(standin, outputs=3)
        got = [requests.get(url, timeout=60) for url in ended["output"]]

    assert [answer.headers["Content-Type"] for answer in got] == ["image/png", "video/mp4", "image/png"]
    assert got[1].content == (folder / "b.mp4").read_bytes()


def test_the_ledger_file_says_what_the_ledger_says(tmp_path: Path) -> None:
    """After a crash of everything else, the file is the witness."""
    with Standin().start(tmp_path) as standin:
        run(standin, outputs=2)
        told = wait_for(lambda: len(lines := standin.ledger()["lines"]) == 5 and lines)

    written = [json.loads(line) for line in (tmp_path / "standin.ledger.jsonl").read_text().splitlines()]

    assert written == told
    assert sorted(line["kind"] for line in told) == ["ended", "output", "output", "prediction", "submission"]
    assert all(datetime.fromisoformat(line["at"]).tzinfo for line in told)


def test_it_stops_on_sigterm_and_keeps_quiet(tmp_path: Path) -> None:
    """Its one line is for whoever waits for it; requests are not logged."""
    standin = Standin().start(tmp_path)
    run(standin)
    process, port = standin._process, standin.port
    assert process is not None

    os.kill(process.pid, signal.SIGTERM)

    assert process.wait(60) == 0
    assert (tmp_path / "standin.log").read_text() == f"ready on port {port}\n"
    standin.stop()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A killed demo must leave no process behind."""
    program = f"""
        import os, signal
        from pathlib import Path
        from simulation.provider.client import Standin
        standin = Standin().start(Path({str(tmp_path)!r}))
        print(standin.port, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)

    assert parent.returncode == -signal.SIGKILL
    wait_for(lambda: not _listens(int(parent.stdout)))


@pytest.mark.parametrize("secret", ["whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64"])
def test_a_wrong_secret_refuses_the_start(tmp_path: Path, secret: str) -> None:
    """A secret that no verifier accepts would only show as refused webhooks."""
    with pytest.raises(StandinError, match="is not whsec_ and base64"):
        Standin(secret=secret).start(tmp_path)


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True
