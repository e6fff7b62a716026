"""Two providers that exist only in a TOML file, one signed and one not, from the webhook to the kept file."""

import asyncio
import base64
import dataclasses
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

import providers
from embedded.stack import Stack
from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.model import Registration
from moorage.settings import Settings
from receiver.app import Receiver
from tasks.audit import run
from tasks.jobs import create
from tests.integration.core import World, database_of, world
from tests.integration.provider_server import answer, running

SECRET = "a secret of the signed one, 32 bytes"
FILE = """
[signed]
output_hosts = ["127.0.0.1"]
[signed.webhook]
signature = "hmac"
secrets = ["SIGNED_SECRET"]
headers = ["X-Signed-Signature"]
prefix = "sha256="
[signed.fields]
id = "task.id"
status = "task.state"
outputs = "task.files[].link"
error = "task.reason"
[signed.statuses]
running = ["Working"]
succeeded = ["Ready"]
failed = ["Error"]
[signed.poll]
url = "BASE/v1/predictions/{id}"
token = "SIGNED_TOKEN"
header = "x-key"
scheme = ""

[thin]
output_hosts = ["127.0.0.1"]
[thin.webhook]
signature = "none"
[thin.fields]
id = "id"
status = "state"
outputs = "assets.[video, image]"
[thin.statuses]
running = ["dreaming"]
succeeded = ["completed"]
failed = ["failed"]
[thin.poll]
url = "BASE/v1/predictions/{id}"
token = "THIN_TOKEN"
"""


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "declared")


@pytest.fixture
def at(stack: Stack, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name, value in {"SIGNED_SECRET": SECRET, "SIGNED_TOKEN": "t1", "THIN_TOKEN": "t2"}.items():
        monkeypatch.setenv(name, value)
    with world(stack, url) as made:
        path = tmp_path / "providers.toml"
        path.write_text(FILE.replace("BASE", made.source.url("")), encoding="utf-8")
        settings = made.deps.settings.model_copy(update={"providers_file": path})
        deps = dataclasses.replace(made.deps, settings=settings, providers=providers.load(settings))
        yield dataclasses.replace(made, deps=deps)


def registered(at: World, provider: str, external_id: str) -> create.CreatedJob:
    given = Registration(provider=provider, external_id=external_id, owner="ann")
    return create.register_prediction(at.deps.database, at.deps.settings, at.deps.providers[provider], given)


def signed(external_id: str, state: str, *links: str, secret: str = SECRET) -> tuple[str, bytes, str]:
    """Return a webhook of the signed provider: its name, body and signature."""
    task: Any = {"id": external_id, "state": state, "files": [{"link": link, "size": 1} for link in links], "seed": 7}
    body = json.dumps({"task": task, "new": {}}).encode()
    return "signed", body, "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


def thin(external_id: str, state: str, image: str | None = None) -> tuple[str, bytes, str]:
    return "thin", json.dumps(generation(external_id, state, image)).encode(), ""


def generation(external_id: str, state: str, image: str | None = None) -> dict[str, Any]:
    return {"id": external_id, "state": state, "assets": {"image": image, "video": None}}


def post(at: World, *webhooks: tuple[str, bytes, str]) -> list[int]:
    """Return the statuses of the receiver's responses."""
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def post_all() -> None:
        app = Receiver(at.deps.settings)
        for name, body, signature in webhooks:
            headers = [(b"x-signed-signature", signature.encode()), (b"content-length", str(len(body)).encode())]
            arriving = iter([{"type": "http.request", "body": body}])

            async def receive(arriving: Iterator[Message] = arriving) -> Message:
                return next(arriving)

            scope = {"type": "http", "method": "POST", "path": f"/webhooks/{name}", "query_string": b""}
            await app({**scope, "headers": headers}, receive, send)
        await app._connections.close()

    asyncio.run(post_all())
    return statuses


def ingest_all(at: World) -> None:
    for row in at.conn.execute("SELECT id FROM deliveries WHERE state = 'new' ORDER BY received_at, id").fetchall():
        for wake in at.step("ingest", row["id"]):
            at.step(wake.step, wake.row_id)


def poll(at: World, job: create.CreatedJob) -> None:
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (job.prediction_id,))
    at.step("poll", job.prediction_id)


def ends(at: World, job: create.CreatedJob) -> tuple[str, str, list[str]]:
    """Return the job's state, what ended its prediction, and the states of its outputs."""
    at.keep_all(job.job_id)
    prediction = at.row("predictions", job.prediction_id)
    outputs = [at.state("outputs", output_id) for output_id in at.outputs(job.job_id)]
    return at.state("jobs", job.job_id), prediction["ended_by"], outputs


def test_every_row_of_a_declared_provider_ends_as_that_of_a_built_in_one(at: World) -> None:
    """A lost webhook is polled for, a second one is known, a forged one is refused, a strange host is a dead letter."""
    whole, lost, mixed, late = (registered(at, "signed", name) for name in ("s1", "s2", "s3", "s4"))
    told, silent = (registered(at, "thin", name) for name in ("t1", "t2"))
    good = signed("s1", "Ready", at.source.picture(1), at.source.picture(2))
    strange = "https://elsewhere.example/a.png"
    task = {"id": "s2", "state": "Ready", "files": [{"link": at.source.picture(3)}]}
    at.source.predictions |= {"s2": {"task": task}, "s4": {"task": {"id": "s4", "state": "Error", "reason": "no GPU"}}}
    at.source.predictions |= {name: generation(name, "completed", at.source.picture(4)) for name in ("t1", "t2")}

    forged = signed("s4", "Ready", strange, secret="a secret of somebody else, 32 by")
    statuses = post(
        at, good, good, forged, ("signed", good[1], ""),
        signed("s3", "Ready", at.source.picture(5), strange), thin("t1", "completed", strange), thin("t2", "dreaming"),
    )  # fmt: skip
    ingest_all(at)
    for job in (lost, late, silent):
        poll(at, job)

    assert statuses == [202, 200, 401, 401, 202, 202, 202]
    assert ends(at, whole) == ("succeeded", "webhook", ["kept", "kept"])
    assert ends(at, lost) == ("succeeded", "poll", ["kept"])
    assert ends(at, mixed) == ("succeeded", "webhook", ["kept", "dead"])
    assert ends(at, late) == ("failed", "poll", [])
    assert ends(at, told) == ("succeeded", "webhook", ["kept"])
    assert ends(at, silent) == ("succeeded", "poll", ["kept"])
    assert [letter["reason"] for letter in at.letters()] == [
        "host elsewhere.example is not allowed: add it to signed.output_hosts in line 3 of MOORAGE_PROVIDERS_FILE"
    ]
    assert at.row("jobs", late.job_id)["reason"] == "no GPU"
    assert run.run_audit(at.deps, second_look_seconds=0).findings == []


def test_a_lost_webhook_is_told_from_one_that_asked_for_a_poll(at: World) -> None:
    """The webhook of a start, with a word that is not declared, has it polled, too: that is not the one of its end."""
    for name, end in (("t5", "completed"), ("t6", None)):
        job = registered(at, "thin", name)
        at.source.predictions[name] = generation(name, "running")
        post(at, thin(name, "started"))
        ingest_all(at)
        assert at.row("predictions", job.prediction_id)["polls"] == 1
        at.source.predictions[name] = 503
        if end is not None:
            post(at, thin(name, end))
            ingest_all(at)
        poll(at, job)
        at.source.predictions[name] = generation(name, "completed", at.source.picture())

        poll(at, job)

        assert ends(at, job) == ("succeeded", "poll" if end is None else "webhook", ["kept"])


def test_an_unsigned_body_about_an_unknown_prediction_creates_no_job(at: World) -> None:
    """Not even where jobs are created for what nobody registered: anybody could create them."""
    at = at.changed(adopt=True)

    post(at, thin("made-up", "completed", at.source.picture()), signed("adopted", "Ready", at.source.picture()))
    ingest_all(at)

    assert at.one("SELECT array_agg(external_id) FROM predictions") == ["adopted"]
    assert at.one("SELECT state FROM deliveries WHERE provider = 'thin'") == "unmatched"


def test_an_unsigned_body_that_nothing_registers_is_ignored_after_ten_minutes(at: World) -> None:
    """Anybody can send any number of them: a dead letter each would hide the others."""
    post(at, thin("made-up", "completed"), signed("unknown", "Ready"))
    ingest_all(at)

    assert at.conn.execute(
        "SELECT provider, unmatched_until - received_at < interval '11 minutes' AS soon FROM deliveries ORDER BY 1"
    ).fetchall() == [{"provider": "signed", "soon": False}, {"provider": "thin", "soon": True}]
    at.conn.execute("UPDATE deliveries SET run_at = moment(), unmatched_until = moment(), state = 'new'")
    ingest_all(at)

    rows = at.conn.execute("SELECT provider, state, reason FROM deliveries ORDER BY 1").fetchall()
    assert [row["state"] for row in rows] == ["dead", "ignored"]
    assert rows[1]["reason"] == "thin prediction made-up was not registered in time, and its body is not signed"
    assert [letter["subject_id"] for letter in at.letters()] == [
        at.one("SELECT id FROM deliveries WHERE state = 'dead'")
    ]


def test_a_body_that_anybody_could_have_sent_changes_nothing_by_itself(at: World) -> None:
    """Neither a file, nor a failure, nor a status word of it is believed: only what the provider says."""
    job = registered(at, "thin", "t9")
    at.source.predictions["t9"] = generation("t9", "dreaming")

    post(at, *(thin("t9", state, at.source.picture()) for state in ("completed", "failed", "dreaming (no files)", "x")))
    ingest_all(at)

    prediction = at.row("predictions", job.prediction_id)
    assert (prediction["state"], prediction["raw_status"]) == ("running", "dreaming")
    assert at.outputs(job.job_id) == []
    assert {path for path in at.source.asked if path.startswith("/v1")} == {"/v1/predictions/t9"}


def test_a_poll_sends_what_is_declared_and_refuses_another_prediction(tmp_path, monkeypatch) -> None:
    """The id and the model are input of an application: they must not lead the token to another path."""
    monkeypatch.setenv("SIGNED_TOKEN", "t1")
    with running() as server:
        base, address = f"http://127.0.0.1:{server.server_port}", f"127.0.0.1:{server.server_port}"
        text = FILE.partition("[thin]")[0].replace("BASE/v1/predictions", f"{base}/{{model}}/tasks")
        path = tmp_path / "providers.toml"
        path.write_text(text + 'headers = { "X-Version" = "2" }\nfields = { id = "id" }\n', encoding="utf-8")
        servers = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
        given = Settings(_env_file=None, **servers, providers_file=path, egress_allow=address)
        provider = providers.load(given)["signed"]
        server.answer = answer(200, b'{"id": "a/b?c", "task": {"state": "working"}}')

        report = provider.poll("a/b?c", "../me")
        with pytest.raises(ProviderUnavailable, match="which was not requested"):
            provider.poll("other", "me")
        server.answer = answer(404)
        with pytest.raises(ProviderRefused) as raised:
            provider.poll("gone", "me")

    asked = server.asked[0]
    assert (report.status, raised.value.facts) == ("running", {"status": 404})
    assert (asked.method, asked.path) == ("GET", "/..%2Fme/tasks/a%2Fb%3Fc")
    assert (asked.headers["x-key"], asked.headers["X-Version"]) == ("t1", "2")
    assert "Authorization" not in asked.headers


OPERATIONS = """
[veo]
output_hosts = ["127.0.0.1", "files.example"]
[veo.webhook]
signature = "standard"
secrets = ["SIGNED_SECRET"]
jwks = ["BASE/jwks.json"]
[veo.fields]
when = "starts_with(type, 'video.')"
id = "data.id"
status = "type"
outputs = "data.video_uri"
[veo.statuses]
running = ["open"]
succeeded = ["video.generated", "done"]
failed = ["failed"]
[veo.poll]
url = "BASE/v1/{+id}"
token = "SIGNED_TOKEN"
header = "x-key"
scheme = ""
serves_files = true
[veo.poll.fields]
id = "name"
status = "done && (error && 'failed' || 'done') || 'open'"
outputs = "response"
error = "error.message"
"""


def test_a_long_running_operation_is_polled_and_the_key_is_sent_to_the_host_of_its_api_alone(
    tmp_path, monkeypatch
) -> None:
    """As Gemini's: an id of several segments, a status that is computed, files as bytes and as URIs."""
    monkeypatch.setenv("SIGNED_TOKEN", "t1")
    name, picture = "models/m/operations/1", base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
    with running() as server:
        base, address = f"http://127.0.0.1:{server.server_port}", f"127.0.0.1:{server.server_port}"
        path = tmp_path / "providers.toml"
        path.write_text(OPERATIONS.replace("BASE", base), encoding="utf-8")
        servers = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
        veo = providers.load(Settings(_env_file=None, **servers, providers_file=path, egress_allow=address))["veo"]
        uris = [f"{base}/files/a:download", "https://files.example/b.mp4"]
        parts = [{"inlineData": {"data": picture}}, *({"video": {"uri": uri}} for uri in uris)]
        bodies: list[dict[str, Any]] = [
            {"name": name}, {"name": name, "done": True, "error": {"message": "no"}},
            {"name": name, "done": True, "response": {"parts": parts}},
        ]  # fmt: skip
        reports = []
        for body in bodies:
            server.answer = answer(200, json.dumps(body).encode())
            reports.append(veo.poll(name))
        for wrong in ("../files", "models//x", "models/./x", "models/x/"):
            with pytest.raises(ProviderRefused, match="is not the id"):
                veo.poll(wrong)

    assert [(report.status, report.error) for report in reports] == [
        ("running", None), ("failed", "no"), ("succeeded", None)
    ]  # fmt: skip
    assert [(file.url, bool(file.data), file.problem) for file in reports[2].outputs] == [
        (None, True, None), (uris[0], False, None), (uris[1], False, None)
    ]  # fmt: skip
    assert {(one.path, one.headers["x-key"]) for one in server.asked} == {(f"/v1/{name}", "t1")}
    assert veo.download_headers(uris[0]) == {"x-key": "t1"}
    for url in (uris[1], f"https://127.0.0.1:{server.server_port}/a", "http://127.0.0.1:1/a", "https://evil.example/a"):
        assert veo.download_headers(url) == {}
