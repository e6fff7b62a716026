"""Authentication, routing between API and receiver, and responses while PostgreSQL is unavailable."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedded.stack import Stack
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp


@pytest.fixture(scope="module")
def front(url: str):
    with wp.running(url) as process:
        yield process


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {wp.TOKEN}",
        wp.TOKEN,
        f"Bearer {wp.TOKEN}x",
        "Bearer \xe9",
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs/0", "/api/v1/projects/p", "/v1/nothing", "/v1"])
def test_without_a_token_nothing_is_revealed(front: wp.Front, path: str, authorization: str | None) -> None:
    """Not even whether a path exists."""
    refused = front.ask("GET", path, headers={} if authorization is None else {"authorization": authorization})

    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith('Bearer realm="moorage"')
    assert refused.headers["content-type"] == "application/problem+json"
    assert wp.TOKEN not in json.dumps(refused.fields)


def test_two_tokens_in_one_request_are_rejected(front: wp.Front) -> None:
    """A proxy in front may check the other one."""
    with front.connect() as conn:
        header = f"Authorization: Bearer {wp.TOKEN}\r\n"
        conn.sendall(f"GET /v1/jobs/0 HTTP/1.1\r\nHost: moorage\r\n{header}{header}\r\n".encode())

        assert rp.read_reply(conn).startswith(b"401 ")


def test_without_a_configured_token_the_api_fails_closed_and_webhooks_are_recorded(url: str) -> None:
    """A missing setting must not open the API, nor lose a webhook."""
    with wp.running(url, MOORAGE_API_TOKEN="") as front:
        refused = front.ask("GET", "/v1/jobs/0", headers={"authorization": "Bearer "})
        recorded = front.post(b"{}", webhook_id="msg_shut")

    assert refused.status == 503
    assert "MOORAGE_API_TOKEN is not set" in refused.fields["detail"]
    assert recorded[0] == 202


def test_the_receiver_serves_all_other_paths(front: wp.Front) -> None:
    """One port for both: probes and webhooks require no token, in every spelling."""
    assert front.call("GET", "/healthz")[0] == 200
    assert front.call("GET", "/readyz")[0] == 200
    assert front.scrape()[0] == 200
    assert front.call("GET", "/metrics")[0] == 404
    assert front.call("GET", "/v1x")[0] == 404
    for prefix in ("", "/api", "/api/v1"):
        assert front.post(b"{}", webhook_id=f"msg{prefix}", path=f"{prefix}/webhooks/replicate")[0] == 202


def test_the_openapi_document_requires_no_token(front: wp.Front) -> None:
    """Client generators have none, and the paths are documented publicly anyway."""
    described = front.ask("GET", "/openapi.json")

    assert (described.status, described.fields["openapi"]) == (200, "3.1.0")
    assert front.ask("POST", "/openapi.json").status == 405


def test_unknown_paths_and_methods_are_problems(front: wp.Front) -> None:
    """All errors have one format."""
    missing = front.get("/v1/nothing")
    method = front.ask("DELETE", "/v1/predictions", headers=wp.BEARER)
    head = front.call("HEAD", "/v1/nothing", headers=wp.BEARER)

    assert (missing.status, missing.fields["title"]) == (404, "Not Found")
    assert method.status == 405
    assert method.headers["allow"] == "GET, HEAD, POST"
    assert method.headers["content-type"] == "application/problem+json"
    assert (head[0], head[2]) == (404, b"")


def test_the_api_can_be_served_alone(url: str) -> None:
    """It scales independently of the receiver."""
    with wp.running(url, wp.Alone) as api:
        made = api.register(external_id="alone")

        assert made.status == 201
        assert api.get(made.headers["location"]).fields["state"] == "open"
        assert api.get("/healthz").status == 404


@pytest.mark.parametrize("app", ["web.asgi:app", "web.app:app"])
def test_an_invalid_setting_fails_the_start_and_is_named(url: str, app: str) -> None:
    """A process that starts and then returns 500 is worse than one that does not start."""
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "0", app]

    ended = subprocess.run(
        command,
        env=rp.environment(url, MOORAGE_API_TOKN="x"),
        cwd=rp.ROOT / "tests",
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode != 0
    assert b"MOORAGE_API_TOKN is not a setting: did you mean MOORAGE_API_TOKEN?" in ended.stdout + ended.stderr


def test_the_combined_application_stops_at_once(url: str) -> None:
    """An orchestrator kills slow processes; both applications must get the shutdown event."""
    with wp.running(url) as front:
        front.register(external_id="stop")
        started = time.monotonic()

        status = front.stop()

        assert status == 0
        assert time.monotonic() - started < 25  # granian kills what has not ended after 40
        assert "Traceback" not in front.log()


def test_the_api_loads_neither_pillow_nor_boto3() -> None:
    """A receiver with the API beside it needs no more memory than one without."""
    heavy = "PIL boto3 botocore celery requests av embedded storage.s3 tasks.step"
    code = f"import sys, web.asgi; print([m for m in {heavy.split()!r} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=rp.ROOT, check=True)

    assert done.stdout.strip() == "[]"


def test_without_postgresql_the_response_is_503_and_the_api_recovers(tmp_path: Path) -> None:
    """An outage is reported without the server's message, and needs no restart."""
    with rp.server(tmp_path) as postgres:
        url = postgres.url("moorage")
        with wp.running(url) as front:
            before = front.register(external_id="outage")
            asked = json.dumps({"owner": "ada"}).encode()
            token = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"})
            browser = {"authorization": f"Bearer {token.fields['token']}", "accept": "text/html"}
            postgres.stop()
            page = front.call("GET", "/", None, browser)
            away = front.get(before.headers["location"])
            unregistered = front.register(external_id="outage_2")
            postgres.start()
            back = front.get(before.headers["location"])

    assert away.status == unregistered.status == 503
    assert away.headers["retry-after"] == "1"
    assert away.fields["detail"] == "database unavailable, retry"
    assert back.status == 200
    assert (page[0], page[1]["retry-after"]) == (503, "1")
    assert "<h1>Temporarily unavailable</h1>" in page[2].decode()  # and not that the link has expired


def test_an_unresponsive_server_costs_five_seconds_and_not_the_process(tmp_path: Path) -> None:
    """A frozen PostgreSQL neither responds nor closes connections: the response arrives anyway."""
    with rp.server(tmp_path) as postgres, wp.running(postgres.url("moorage")) as front:
        made = front.register(external_id="frozen")
        (backend,) = rp.rows(
            postgres.url("moorage"), "SELECT pid FROM pg_stat_activity WHERE application_name = 'moorage web'"
        )
        os.kill(backend["pid"], signal.SIGSTOP)
        try:
            started = time.monotonic()
            hung = front.get(made.headers["location"])
            took = time.monotonic() - started
            beside = front.get(made.headers["location"])
        finally:
            os.kill(backend["pid"], signal.SIGCONT)

    assert hung.status == 503
    assert 4.5 < took < 15
    assert beside.status == 200  # over another connection


def test_an_unexpected_error_is_a_500_without_details(stack: Stack) -> None:
    """The log has the traceback; the response has neither SQL nor a path."""
    with wp.running(stack.postgres.create_database("web_unmigrated")) as front:
        failed = front.get("/v1/jobs/01890000-0000-7000-8000-000000000000")
        rp.until(lambda: "UndefinedTable" in front.log())

    assert failed.status == 500
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.fields["detail"] == "internal server error"
