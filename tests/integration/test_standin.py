"""The stand-in's Replicate API and its process, over real HTTP."""

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

from moorage.errors import ConfigError
from simulation.provider.client import StandinError
from tests.integration.standin_receiver import wait_for
from tests.support.standin import Standin

FIELDS = {
    *("id", "model", "version", "status", "input", "output", "error", "logs", "metrics", "created_at", "started_at"),
    *("completed_at", "data_removed", "deadline", "deployment", "source", "urls", "webhook", "webhook_events_filter"),
}


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


def request(standin: Standin, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
    bearer = {"Authorization": f"Bearer {standin.token}", **headers}
    return requests.request(method, f"{standin.url}{path}", json=body, headers=bearer, timeout=60)


def run(standin: Standin, **script: Any) -> dict[str, Any]:
    """Create a prediction and return it at its end."""
    created = standin.create_prediction({"standin": {"duration_s": 0, **script}})
    return wait_for(lambda: (p := standin.get_prediction(created["id"]))["completed_at"] and p)


def test_a_prediction_has_every_field_and_advances(standin: Standin) -> None:
    """Parsers written for the real object must find all its fields."""
    created = standin.create_prediction({"prompt": "a pier", "standin": {"duration_s": 3, "outputs": 2}})

    running = wait_for(lambda: (p := standin.get_prediction(created["id"]))["status"] == "processing" and p)
    ended = wait_for(lambda: (p := standin.get_prediction(created["id"]))["completed_at"] and p)

    assert set(created) == set(running) == set(ended) == FIELDS
    assert (created["status"], created["output"], created["started_at"]) == ("starting", None, None)
    assert (ended["status"], len(ended["output"]), ended["error"]) == ("succeeded", 2, None)
    assert created["created_at"] < ended["started_at"] < ended["completed_at"]
    assert 0.3 < ended["metrics"]["predict_time"] < ended["metrics"]["total_time"]
    assert ended["input"]["prompt"] == "a pier"


@pytest.mark.parametrize("status", ["failed", "canceled", "aborted"])
def test_an_unsuccessful_end_has_its_status_and_no_files(standin: Standin, status: str) -> None:
    """All terminal statuses of the provider are available; aborted never starts."""
    ended = run(standin, status=status)

    assert (ended["status"], ended["output"]) == (status, None)
    assert (ended["started_at"] is None) == (status == "aborted")
    assert (ended["error"] is None) == (status == "canceled")


def test_a_failed_prediction_shows_previews_that_are_not_expected(standin: Standin) -> None:
    """Files of a failed prediction are previews, which the ledger must not expect to be kept."""
    ended = run(standin, status="failed", outputs=4)

    lines = standin.get_ledger()["summary"]["expected"]["preview"]

    assert len(ended["output"]) == 2
    assert [line["url"] for line in lines if line["prediction"] == ended["id"]] == ended["output"]


def test_a_prediction_without_an_end_can_be_cancelled(standin: Standin) -> None:
    """Deadlines and cancellation need a prediction that does not end by itself."""
    created = standin.create_prediction({"standin": {"duration_s": 0, "status": "processing"}})
    wait_for(lambda: standin.get_prediction(created["id"])["status"] == "processing")

    cancelled = standin.cancel_prediction(created["id"])

    assert cancelled["status"] == standin.get_prediction(created["id"])["status"] == "canceled"
    assert standin.cancel_prediction(created["id"])["completed_at"] == cancelled["completed_at"]


def test_output_has_every_shape(standin: Standin) -> None:
    """Models return whatever JSON they declare."""
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


def test_the_ledger_identifies_outputs_by_path_and_hash(standin: Standin) -> None:
    """A comparison needs both: the output and its bytes."""
    ended = run(standin, shape="nested", outputs=2, seed=11)
    again = run(standin, shape="list", outputs=2, seed=11)

    kept = standin.get_ledger()["summary"]["expected"]["kept"]
    first = [line for line in kept if line["prediction"] == ended["id"]]
    second = [line for line in kept if line["prediction"] == again["id"]]

    assert [line["path"] for line in first] == ["output.images[0].url", "output.images[1].url"]
    assert [line["path"] for line in second] == ["output[0]", "output[1]"]
    assert [line["sha256"] for line in first] == [line["sha256"] for line in second]


def test_lists_are_paged_newest_first(standin: Standin) -> None:
    """Predictions of uncertain submissions are found in the list; 100 per page."""
    created = [standin.create_prediction({"standin": {"status": "aborted", "duration_s": 0}}) for _ in range(205)]
    since = {"created_after": created[0]["created_at"], "created_before": created[-1]["created_at"]}

    url, pages = f"{standin.url}/v1/predictions?{urlencode(since)}", []
    while url:
        pages.append(requests.get(url, headers={"Authorization": f"Bearer {standin.token}"}, timeout=60).json())
        url = pages[-1]["next"]

    assert [len(page["results"]) for page in pages] == [100, 100, 4]
    ids = [prediction["id"] for page in pages for prediction in page["results"]]
    assert ids == [prediction["id"] for prediction in reversed(created[:-1])]


def test_a_wrong_token_is_rejected_everywhere(standin: Standin) -> None:
    """A client that omits its token must fail here, not in production."""
    for path in ("/v1/predictions", "/v1/predictions/x", "/standin/ledger"):
        for header in ("", "Bearer wrong", f"Token {standin.token}"):
            response = request(standin, "GET", path, Authorization=header)

            assert response.status_code == 401
            assert response.headers["Content-Type"] == "application/problem+json"
            assert set(response.json()) == {"title", "detail", "status"}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
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
def test_an_invalid_request_is_rejected_with_the_reason(standin: Standin, body: Any, status: int, detail: str) -> None:
    """Rejected like the provider does, and nothing is created."""
    before = standin.get_ledger()["summary"]["predictions"]

    response = request(standin, "POST", "/v1/predictions", body)

    assert (response.status_code, detail in response.json()["detail"]) == (status, True)
    assert standin.get_ledger()["summary"]["predictions"] == before


def test_official_models_need_no_version_and_unknown_paths_are_404(standin: Standin) -> None:
    """Official models have their own endpoint."""
    created = request(standin, "POST", "/v1/models/acme/pier/predictions", {"input": {}})

    assert (created.status_code, created.json()["model"], created.json()["version"]) == (201, "acme/pier", "hidden")
    assert request(standin, "GET", "/v1/predictions/unknown").status_code == 404
    assert request(standin, "POST", "/v1/predictions/unknown/cancel").status_code == 404
    assert request(standin, "GET", "/v1/nothing").status_code == 404


def test_data_is_removed_at_its_expiry(standin: Standin) -> None:
    """This response means that the files are lost, not that the prediction failed."""
    ended = run(standin, output_life_s=3)

    removed = wait_for(lambda: (p := standin.get_prediction(ended["id"]))["data_removed"] and p)

    assert (removed["status"], removed["output"], removed["logs"]) == ("succeeded", None, None)
    assert requests.get(ended["output"][0], timeout=60).status_code == 404


def test_a_prediction_that_never_ends_succeeds_on_request(standin: Standin) -> None:
    """A test of a late success should decide itself when it comes."""
    created = standin.create_prediction({"standin": {"duration_s": 0, "status": "processing", "outputs": 2}})
    wait_for(lambda: (standin.get_prediction(created["id"])["logs"] or "").endswith("1/2\n"))

    standin.end_prediction(created["id"])

    ended = standin.get_prediction(created["id"])
    assert (ended["status"], len(ended["output"])) == ("succeeded", 2)
    with pytest.raises(StandinError, match="404"):
        standin.end_prediction("unknown")


def test_an_outage_returns_503_until_it_is_over(standin: Standin) -> None:
    """An unavailable provider is not a failed prediction."""
    ended = run(standin)
    standin.begin_outage(60)

    assert request(standin, "GET", f"/v1/predictions/{ended['id']}").status_code == 503
    assert requests.get(ended["output"][0], timeout=60).status_code == 200
    standin.begin_outage(60, outputs=True)
    assert requests.get(ended["output"][0], timeout=60).status_code == 503

    standin.begin_outage(0)
    assert standin.get_prediction(ended["id"])["status"] == "succeeded"


def test_files_of_a_folder_are_served_unchanged(tmp_path: Path) -> None:
    """Real pictures and videos, byte for byte."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "b.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    (folder / "a.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("not served")

    with Standin(pictures=folder).start(tmp_path) as standin:
        ended = run(standin, outputs=3)
        responses = [requests.get(url, timeout=60) for url in ended["output"]]

    assert [response.headers["Content-Type"] for response in responses] == ["image/png", "video/mp4", "image/png"]
    assert responses[1].content == (folder / "b.mp4").read_bytes()


def test_the_ledger_file_has_the_same_lines_as_the_api(tmp_path: Path) -> None:
    """After a crash the file is the only record."""
    with Standin().start(tmp_path) as standin:
        run(standin, outputs=2)
        lines = wait_for(lambda: len(lines := standin.get_ledger()["lines"]) == 5 and lines)

    written = [json.loads(line) for line in (tmp_path / "standin.ledger.jsonl").read_text().splitlines()]

    assert written == lines
    assert sorted(line["kind"] for line in lines) == ["ended", "output", "output", "prediction", "submission"]
    assert all(datetime.fromisoformat(line["at"]).tzinfo for line in lines)


def test_it_stops_on_sigterm_and_logs_no_requests(tmp_path: Path) -> None:
    """Its only line of output reports that it is ready."""
    standin = Standin().start(tmp_path)
    run(standin)
    process, port = standin._process, standin.port
    assert process is not None
    assert process.pid is not None

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
def test_an_invalid_secret_prevents_the_start(tmp_path: Path, secret: str) -> None:
    """A secret that no verifier accepts would only show as rejected webhooks."""
    with pytest.raises(ConfigError, match="is not whsec_ and base64"):
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
