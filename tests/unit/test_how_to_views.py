"""The views of the how-to pages: taken from the page, they receive notifications that moorage's own code signed."""

import ast
import asyncio
import base64
import importlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import requests

from providers import webhook_signing
from tasks import notifications
from tests.support import pages
from web import openapi
from web.api.job_schema import JobCreate
from web.api.registrations import PredictionCreate
from web.http.query import RenderQuery

REPLICATE, NEXTJS = pages.HOW_TO / "keep-replicate-pictures.md", pages.HOW_TO / "use-from-nextjs.md"
URL, PATH = "https://moorage.example.com", "/moorage/notifications"
SECRET, OTHER = ("whsec_" + base64.b64encode(name * 3).decode() for name in (b"ours, as set", b"not ours at"))
JOB, NOTIFICATION = UUID(int=5), UUID(int=7)
# the example of docs/http.md
EVENT: dict[str, Any] = next(
    found
    for block in pages.read_blocks(pages.ROOT / "docs/http.md", "json")
    if "sequence" in (found := json.loads(block.text)).get("data", {})
)


def signed(sequence: int, state: str = "partial", secret: str = SECRET, age: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a notification, as the notify step sends them."""
    data = {**EVENT["data"], "job_id": str(JOB), "sequence": sequence, "state": state}
    body = json.dumps({**EVENT, "data": data}, separators=(",", ":")).encode()
    secrets = webhook_signing.decode_standard_secrets((types.SimpleNamespace(get_secret_value=lambda: secret),), "TEST")
    headers = notifications.build_headers(NOTIFICATION, body, int(time.time()) - age, secrets)
    return body, {name: value for name, value in headers.items() if name != "Connection"}


def forged() -> list[tuple[bytes, dict[str, str]]]:
    body, headers = signed(9, "failed")
    return [
        (body.replace(b"failed", b"killed"), headers),
        signed(9, "failed", secret=OTHER),
        signed(9, "failed", age=600),
        (body, {name: value for name, value in headers.items() if name != "webhook-signature"}),
        (body, {**headers, "webhook-signature": "v1"}),
        (b"\xff", headers),
    ]


# what is sent in this order, and what is stored after each: repeated, late and newer ones
ORDER = ((4, "partial", (4, "partial")), (4, "partial", (4, "partial")), (8, "succeeded", (8, "succeeded")),
         (6, "failed", (8, "succeeded")))  # fmt: skip


@pytest.fixture(scope="module")
def django(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a test client for the page's model, view and route."""
    folder = tmp_path_factory.mktemp("django")
    (folder / "pictures").mkdir()
    for name in ("models", "views", "urls"):
        (folder / f"pictures/{name}.py").write_text(pages.read_file(REPLICATE, f"pictures/{name}.py"))
    (folder / "pictures/__init__.py").touch()
    sys.path.insert(0, str(folder))
    conf, setup = importlib.import_module("django.conf"), importlib.import_module("django")
    conf.settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["pictures"], ROOT_URLCONF="pictures.urls", ALLOWED_HOSTS=["testserver"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField", MOORAGE_NOTIFY_SECRET=SECRET, USE_TZ=True,
    )  # fmt: skip
    setup.setup()
    picture = importlib.import_module("pictures.models").Picture
    with importlib.import_module("django.db").connection.schema_editor() as editor:
        editor.create_model(picture)
    yield importlib.import_module("django.test").Client(enforce_csrf_checks=True), picture
    sys.path.remove(str(folder))


def test_the_django_view_stores_the_newest_end_of_a_job(django):
    """Notifications arrive at least once and in any order."""
    client, picture = django
    for sequence, state, stored in ORDER:
        body, headers = signed(sequence, state)

        response = client.post(PATH, body, content_type="application/json", headers=headers)

        assert response.status_code == 204
        assert [(row.sequence, row.state) for row in picture.objects.all()] == [stored]
    row = picture.objects.get(job_id=JOB)
    assert (row.owner, row.files) == (EVENT["data"]["owner"], EVENT["data"]["variants"])


@pytest.mark.parametrize("number", range(6))
def test_the_django_view_refuses_what_moorage_did_not_sign(django, number):
    """Anybody can send a POST there."""
    client, picture = django
    body, headers = forged()[number]

    response = client.post(PATH, body, content_type="application/json", headers=headers)

    assert response.status_code == 401
    assert not picture.objects.filter(sequence=9).exists()


def test_the_django_view_refuses_other_methods(django):
    """A browser that opens the address changes nothing."""
    assert django[0].get(PATH).status_code == 405


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes, dict[str, str]], int]:
    """Return a function that sends a notification to the page's application and returns the status."""
    monkeypatch.setenv("MOORAGE_NOTIFY_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    app = load("app.py")["app"]

    async def post(body: bytes, headers: dict[str, str]) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            return (await client.post(PATH, content=body, headers=headers)).status_code

    return lambda body, headers: asyncio.run(post(body, headers))


def load(name: str) -> dict[str, Any]:
    module = types.ModuleType("how_to")
    sys.modules["how_to"] = module  # FastAPI resolves annotations there
    exec(compile(pages.read_file(REPLICATE, name), name, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def stored_rows() -> list[tuple[Any, ...]]:
    conn = sqlite3.connect("pictures.db")
    rows = conn.execute("SELECT sequence, state, owner, files FROM pictures").fetchall()
    conn.close()
    return rows


def test_the_fastapi_view_stores_the_newest_end_of_a_job(send):
    """The same contract as the Django view's."""
    for sequence, state, stored in ORDER:
        body, headers = signed(sequence, state)

        assert send(body, headers) == 204
        assert [row[:2] for row in stored_rows()] == [stored]
    assert json.loads(stored_rows()[0][3]) == EVENT["data"]["variants"]


def test_the_fastapi_view_refuses_what_moorage_did_not_sign(send):
    """Nothing is stored, not even the table is created."""
    for body, headers in forged():
        assert send(body, headers) == 401

    assert not Path("pictures.db").exists()


@pytest.mark.parametrize("name", ["pictures/views.py", "app.py"])
def test_a_view_has_fifteen_lines_at_most(name):
    """An integration of one evening."""
    tree = ast.parse(pages.read_file(REPLICATE, name))
    (view,) = [node for node in tree.body if getattr(node, "name", "") == "receive_notification"]

    assert view.end_lineno - view.decorator_list[0].lineno + 1 <= 15


class Requests:
    """Records what the page's functions send, and answers with what moorage answers."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer, self.sent = answer, []

    def __call__(self, url: str, **options: Any) -> Any:
        self.sent.append((url, options))
        response = requests.Response()
        response.status_code, response._content = 201, json.dumps(self.answer).encode()
        return response


def test_a_prediction_is_created_with_the_webhook_and_registered(monkeypatch):
    """The request is parsed by the model of the endpoint: a wrong field would be a 422."""
    created: list[dict[str, Any]] = []
    create = types.SimpleNamespace(create=lambda **given: created.append(given) or types.SimpleNamespace(id="abc123"))
    monkeypatch.setitem(sys.modules, "replicate", types.SimpleNamespace(predictions=create))
    monkeypatch.setenv("RENDERS_URL", URL)
    monkeypatch.setenv("MOORAGE_API_TOKEN", "token")
    names = load("pictures/moorage.py")
    post, get = Requests({"job_id": str(JOB)}), Requests({"renders": [1, 2]})
    monkeypatch.setattr(requests, "post", post)
    monkeypatch.setattr(requests, "get", get)

    job_id, renders = names["create_picture"]("ada", "a boat"), names["list_renders"]("ada")

    assert (job_id, renders) == (str(JOB), [1, 2])
    assert created[0]["webhook"] == f"{URL}/webhooks/replicate"
    ((address, options),) = post.sent
    registration = PredictionCreate.model_validate_json(json.dumps(options["json"]))
    assert (registration.provider, registration.external_id, registration.owner) == ("replicate", "abc123", "ada")
    assert options["headers"] == {"Authorization": "Bearer token"}
    assert_described("post", address)
    ((address, options),) = get.sent
    assert RenderQuery.model_validate(options["params"]).owner == "ada"
    assert_described("get", address)


def assert_described(method: str, address: str) -> None:
    path = address.removeprefix(URL).split("?")[0]
    assert method in openapi.build_document()["paths"][path]


# --- Next.js -------------------------------------------------------------------------------------------------------

PACKAGES = {
    "package.json": '{"type": "module"}',
    "node_modules/next/package.json": '{"type": "module", "exports": {"./cache": "./cache.js"}}',
    "node_modules/next/cache.js": "export const revalidatePath = (path) => (globalThis.paths ??= []).push(path);",
    "node_modules/standardwebhooks/package.json": '{"type": "module", "exports": "./index.js"}',
    # as version 1.1 of the package: a missing header, an old time stamp or another signature throws
    "node_modules/standardwebhooks/index.js": """
import { createHmac } from "node:crypto";
export class Webhook {
  constructor(secret) { this.key = Buffer.from(secret.replace("whsec_", ""), "base64"); }
  verify(payload, headers) {
    const [id, at, given] = ["id", "timestamp", "signature"].map((name) => headers[`webhook-${name}`]);
    if (!id || !at || !given || Math.abs(Date.now() / 1000 - at) > 300) throw new Error("refused");
    const right = createHmac("sha256", this.key).update(`${id}.${at}.${payload}`).digest("base64");
    if (!given.split(" ").includes(`v1,${right}`)) throw new Error("refused");
    return JSON.parse(payload);
  }
}
""",
    "driver.js": """
import { POST } from "./app/api/moorage/route.js";
import { createPicture, listRenders } from "./lib/moorage.js";
const answers = [], sent = [];
for (const { body, headers } of JSON.parse(process.env.DELIVERIES)) {
  const options = { method: "POST", body: Buffer.from(body, "base64"), headers };
  answers.push((await POST(new Request("https://app/api/moorage", options))).status);
}
globalThis.fetch = async (url, options) => { sent.push({ url, ...options }); return Response.json({ renders: [] }); };
await createPicture("ada", "a boat", "form-1");
await listRenders("ada");
console.error(JSON.stringify({ answers, sent, paths: globalThis.paths }));
""",
}


def test_the_nextjs_handler_accepts_what_moorage_signed_and_nothing_else(tmp_path):
    """Run by Node as it stands on the page, with imitations of the two packages that it imports."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js is installed")
    handlers = {name: pages.read_file(NEXTJS, name) for name in ("app/api/moorage/route.js", "lib/moorage.js")}
    for name, text in {**PACKAGES, **handlers}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    deliveries = [
        {"body": base64.b64encode(body).decode(), "headers": headers} for body, headers in (signed(4), *forged())
    ]
    env = {"MOORAGE_NOTIFY_SECRET": SECRET, "RENDERS_URL": URL, "MOORAGE_API_TOKEN": "token",
           "DELIVERIES": json.dumps(deliveries)}  # fmt: skip

    done = subprocess.run(
        [node, "driver.js"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr)
    assert found["answers"] == [204, *[401] * len(forged())]
    assert found["paths"] == ["/pictures"]
    create, read = found["sent"]
    request = JobCreate.model_validate_json(create["body"])
    assert (request.owner, request.prompt, len(request.chain)) == ("ada", "a boat", 1)
    assert create["headers"]["Idempotency-Key"] == "form-1"
    assert_described("post", create["url"])
    assert_described("get", read["url"])
