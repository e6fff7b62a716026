"""The compose file is true: each of our services, started as it says, does its job on real servers."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from db.connection import connect
from embedded import ports
from embedded.process import Process
from embedded.stack import Stack
from moorage.settings import Settings, env_names_by_field
from tests.acceptance import compose_file
from tests.acceptance.retry_503 import patient
from tests.acceptance.world import until

PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
LONG_RUNNING = compose_file.OURS[1:]


class Composed:
    """Our services with the file's own commands and environments; only addresses are those of this test's servers."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.folder = folder
        self.key = secrets.token_bytes(24)
        self.port, self.flower_port, metrics_port = ports.reserve(3)
        self.database_url = stack.postgres.create_database("moorage_composed")
        self._addresses = {
            "postgres:5432/moorage": f"127.0.0.1:{stack.postgres.port}/moorage_composed",
            "valkey:6379/0": f"127.0.0.1:{stack.valkey.port}/9",
            "seaweedfs:8333": f"127.0.0.1:{stack.seaweedfs.port}",
            "0.0.0.0": "127.0.0.1",
            "8000": str(self.port),
            "5555": str(self.flower_port),
            "9464": str(metrics_port),
        }
        known = stack.environment()
        self.dotenv = {
            "PUBLIC_URL": f"http://127.0.0.1:{self.port}",
            "S3_PUBLIC_ENDPOINT_URL": stack.seaweedfs.url,
            "MOORAGE_API_TOKEN": secrets.token_hex(32),
            "FLOWER_PASSWORD": secrets.token_hex(24),
            "AWS_ACCESS_KEY_ID": known["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": known["AWS_SECRET_ACCESS_KEY"],
            "POSTGRES_PASSWORD": _password(stack.postgres.url("moorage")),
            "VALKEY_PASSWORD": _password(stack.valkey.url()),
            "REPLICATE_WEBHOOK_SECRET": "whsec_" + base64.b64encode(self.key).decode(),
            "S3_PUBLIC_BUCKET": "composed-public",
            "S3_PRIVATE_BUCKET": "composed-private",
        }
        self.processes: dict[str, Process] = {}

    def launch(self, name: str) -> Process:
        """Start a service as `docker compose up` would, its entry point being moorage."""
        service = compose_file.service(name, self.dotenv)
        command = [self._here(word) for word in service.command]
        process = Process(
            [sys.executable, "-m", "cli.main", *command],
            env=self.environment(name),
            cwd=compose_file.ROOT,
            log_path=self.folder / f"{name}.log",
            name=name,
            grace_seconds=20.0,
        )
        process.launch()
        self.processes[name] = process
        return process

    def environment(self, name: str) -> dict[str, str]:
        """Return the image's environment, the file .env and what the service says, the later winning."""
        service = compose_file.service(name, self.dotenv)
        image = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(compose_file.ROOT),
            "TMPDIR": str(self.folder),
        }
        said = {key: self._here(str(value)) for key, value in service.environment.items()}
        said["MOORAGE_ALIVE_FILE"] = str(self.folder / f"{name}.alive")  # each container has a /tmp of its own
        return {**image, **(self.dotenv if service.reads_dotenv else {}), **said}

    def is_healthy(self, name: str) -> bool:
        """Run the service's health check once."""
        kind, *words = compose_file.service(name, self.dotenv).health
        argv = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        argv = [self._here(word) for word in argv]
        return subprocess.run(argv, env=self.environment(name), capture_output=True, timeout=60).returncode == 0

    def stop(self) -> None:
        """End what runs; beat and workers first, as nothing waits for them."""
        for process in reversed(self.processes.values()):
            process.stop()

    def deliver(self) -> dict[str, Any]:
        """Register a prediction, send its webhook with one picture in it, and return the job's answer."""
        external_id = uuid.uuid4().hex
        asked = {"provider": "replicate", "external_id": external_id, "owner": "composed"}
        made = self._api("POST", "/v1/predictions", asked)
        body = json.dumps({"id": external_id, "status": "succeeded", "output": [PIXEL]}).encode()
        url, headers = f"http://127.0.0.1:{self.port}/webhooks/replicate", self._signed(body)
        answer = patient(lambda: requests.post(url, data=body, headers=headers, timeout=30))
        assert answer.status_code == 202, answer.text
        return made

    def job(self, job_id: str) -> dict[str, Any]:
        """Return what the API says of a job."""
        return self._api("GET", f"/v1/jobs/{job_id}")

    def flower_tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that Flower's API lists."""
        url = f"http://127.0.0.1:{self.flower_port}/api/tasks?limit=1000"
        answer = requests.get(url, auth=("moorage", self.dotenv["FLOWER_PASSWORD"]), timeout=30)
        assert answer.status_code == 200, answer.text
        return list(answer.json().values())

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a question."""
        conn = connect(self.database_url)
        try:
            return conn.execute(sql).fetchall()
        finally:
            conn.close()

    def _api(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.dotenv['MOORAGE_API_TOKEN']}"}
        url = f"http://127.0.0.1:{self.port}{path}"
        answer = patient(lambda: requests.request(method, url, json=body, headers=headers, timeout=30))
        assert answer.status_code < 300, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _signed(self, body: bytes) -> dict[str, str]:
        webhook_id, at = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
        digest = hmac.new(self.key, f"{webhook_id}.{at}.".encode() + body, hashlib.sha256).digest()
        signature = f"v1,{base64.b64encode(digest).decode()}"
        return {"webhook-id": webhook_id, "webhook-timestamp": at, "webhook-signature": signature}

    def _here(self, text: str) -> str:
        for theirs, ours in self._addresses.items():
            text = text.replace(theirs, ours)
        return text


def _password(url: str) -> str:
    return url.partition("://")[2].rpartition("@")[0].rpartition(":")[2]


@pytest.fixture(scope="module")
def composed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Run migrate to its end, then the other services together."""
    made = Composed(stack, tmp_path_factory.mktemp("composed"))
    migrate = made.launch("migrate")
    assert migrate.wait(90) == 0, migrate.log_tail()
    try:
        for name in LONG_RUNNING:
            made.launch(name)
        yield made
    finally:
        made.stop()


TYPES = {field: str(info.annotation) for field, info in Settings.model_fields.items()}
SECRETS = {names[0] for field, names in env_names_by_field().items() if "Secret" in TYPES[field]}
SECRETS |= {"POSTGRES_PASSWORD", "VALKEY_PASSWORD", "FLOWER_PASSWORD", "MOORAGE_NOTIFY_URL"}
STORAGE = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
PROVIDERS = {name for name in SECRETS if name.startswith(("REPLICATE_", "FAL_", "OPENAI_", "STANDARD_"))}
NOTIFICATIONS = {"MOORAGE_NOTIFY_URL", "MOORAGE_NOTIFY_SECRET"}
SERVERS = {"DATABASE_URL", "CELERY_BROKER_URL"}
USED = {
    "migrate": {"DATABASE_URL"},
    "beat": {"CELERY_BROKER_URL"},
    "flower": {"CELERY_BROKER_URL"},
    "worker-sweeps": SERVERS,
    "worker-keep": SERVERS | STORAGE | PROVIDERS,
    "worker-quick": SERVERS | STORAGE | PROVIDERS | NOTIFICATIONS,
    "receiver": SERVERS | STORAGE | PROVIDERS | NOTIFICATIONS | {"MOORAGE_API_TOKEN", "MOORAGE_OWNER_TOKEN_SECRET"},
}


@pytest.mark.parametrize("name", compose_file.OURS)
def test_a_service_has_only_the_secrets_that_it_uses(composed, name):
    """Whoever takes over one container has no more than that; a new secret must be assigned here."""
    composed_dotenv = {**dict.fromkeys(SECRETS - SERVERS, "a-secret"), **composed.dotenv}
    service = compose_file.service(name, composed_dotenv)
    environment = {**(composed_dotenv if service.reads_dotenv else {}), **service.environment}

    known = {secret for secret in SECRETS if environment.get(secret, "not-used") not in ("", "not-used")}
    assert {secret for secret in known if secret not in SERVERS or "@" in environment[secret]} == USED[name]


@pytest.mark.parametrize("name", compose_file.load()["services"])
def test_a_service_has_limits(name):
    """One that leaks must not take the machine with it."""
    service = compose_file.load()["services"][name]

    assert service["mem_limit"]
    assert service["pids_limit"]


def test_migrate_brings_the_schema_and_may_run_again(composed):
    """`docker compose up` runs it at every start."""
    versions = composed.rows("SELECT version FROM schema_migrations")

    again = composed.launch("migrate")

    assert versions
    assert again.wait(90) == 0, again.log_tail()
    assert composed.rows("SELECT version FROM schema_migrations") == versions


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_becomes_healthy_by_its_own_check(composed, name):
    """Compose starts what waits for a service, and shows it as well, by nothing else."""
    until(lambda: composed.is_healthy(name), f"{name} is healthy: {composed.processes[name].log_tail()}")

    assert composed.processes[name].is_running


def test_a_worker_that_hangs_is_not_healthy(composed):
    """A check that cannot fail would show a stuck worker as well."""
    alive = Path(composed.environment("worker-quick")["MOORAGE_ALIVE_FILE"])
    check = compose_file.service("worker-quick", composed.dotenv).health[1]
    left = composed.folder / "left.alive"
    until(alive.exists, "the worker touches its file")
    left.touch()
    os.utime(left, (time.time() - 60, time.time() - 60))

    stale = subprocess.run(["sh", "-c", check], env={"PATH": os.environ["PATH"], "MOORAGE_ALIVE_FILE": str(left)})
    absent = subprocess.run(["sh", "-c", check], env={"PATH": os.environ["PATH"], "MOORAGE_ALIVE_FILE": "/nowhere"})

    assert stale.returncode != 0
    assert absent.returncode != 0


def test_a_webhook_is_kept_by_the_workers_while_beat_ticks(composed):
    """The main job, with the file's own environments; the published file is read as a stranger reads it."""
    until(lambda: composed.is_healthy("receiver"), "the receiver is ready")

    made = composed.deliver()
    until(lambda: composed.job(made["job_id"])["state"] == "succeeded", "the job succeeds")

    (kept,) = composed.rows(f"SELECT key, bytes FROM outputs WHERE job_id = '{made['job_id']}'")
    url = f"{composed.dotenv['S3_PUBLIC_ENDPOINT_URL']}/composed-public/{kept['key']}"
    assert len(requests.get(url, timeout=30).content) == kept["bytes"]
    until(lambda: composed.rows("SELECT 1 FROM ticks WHERE sweep = 'dispatch' AND finished_at IS NOT NULL"), "a tick")


def test_flower_lists_our_tasks_by_name_with_their_row_ids(composed):
    """Flower is where Celery users look; it switches events on by itself some seconds after its start."""
    until(lambda: composed.is_healthy("receiver") and composed.is_healthy("flower"), "receiver and Flower are ready")

    def listed() -> bool:
        composed.deliver()
        seen = {(task["name"], row_id) for task in composed.flower_tasks() for row_id in _ids_in(task)}
        deliveries = {("moorage.ingest", str(row["id"])) for row in composed.rows("SELECT id FROM deliveries")}
        outputs = {("moorage.keep", str(row["id"])) for row in composed.rows("SELECT id FROM outputs")}
        time.sleep(0.5)  # between two deliveries
        return bool(seen & deliveries) and bool(seen & outputs)

    until(listed, "Flower lists moorage.ingest and moorage.keep with the ids of their rows")


def test_flower_asks_for_its_password(composed):
    """Its API stops workers."""
    until(lambda: composed.is_healthy("flower"), "Flower is ready")

    answer = requests.get(f"http://127.0.0.1:{composed.flower_port}/api/tasks", timeout=30)

    assert answer.status_code == 401


def _ids_in(task: dict[str, Any]) -> list[str]:
    text = str(task.get("args") or "")
    return [word for word in text.replace("'", " ").replace('"', " ").split() if len(word) == 36]
