"""A running moorage with a stand-in provider: how tests start jobs in it, look at it, and hold it to the rules."""

import base64
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
import requests
from celery import Celery
from celery.utils.nodenames import gethostname

from db.connection import Connection, connect
from embedded.process import Process
from moorage import settings as settings_module
from moorage import transitions
from moorage.settings import Settings
from storage import s3
from tests.acceptance.retry_503 import patient
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

LEASE_SECONDS = 6.0
# Short waits, so that what takes minutes in earnest takes seconds; no guard is off.
SETTINGS = {
    "MOORAGE_LEASE_SECONDS": str(LEASE_SECONDS),
    "MOORAGE_STOP_GRACE_SECONDS": "1",
    "MOORAGE_DEV_WAIT_BASE_SECONDS": "0.2",
    "MOORAGE_DEV_WAIT_CAP_SECONDS": "1",
    "MOORAGE_MAX_ERRORS": "3",
    "MOORAGE_IMAGE_MAX_BYTES": "50000000",
    "MOORAGE_DEV_POLL_FIRST_SECONDS": "4",
    "MOORAGE_DEV_RECONCILE_SECONDS": "1",
    "MOORAGE_DEV_DRAIN_SECONDS": "2",
    "MOORAGE_DEV_DISCARD_SECONDS": "2",
    "MOORAGE_DEV_ANSWER_SECONDS": "8",
}
WORKERS = ("quick", "sweeps", "keep1", "keep2")


def until(look: Callable[[], Any], what: str, *, seconds: float = 90.0) -> Any:
    """Return what `look` finds as soon as it is truthy; fail with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Asked:
    """A job that a test started: the stand-in's prediction and our job."""

    external_id: str
    job_id: UUID


class World:
    """The one running system that the acceptance tests share."""

    def __init__(self, local: LocalDeployment, standin: Standin, armed: Path) -> None:
        self.local, self.standin, self.armed = local, standin, armed
        self.settings = load_settings(local.environment())
        self.url = self.settings.database_url.get_secret_value()
        self.blobs = s3.ObjectStore(self.settings)
        self._conn: Connection | None = None
        self._rests = False
        self._heard: dict[str, int | None] = {}  # the process ids of workers that were heard

    @property
    def token(self) -> dict[str, str]:
        """Return the header that opens the API."""
        return {"Authorization": f"Bearer {self.local.secrets['api_token']}"}

    @property
    def hook(self) -> str:
        """Return where the stand-in sends its webhooks."""
        return f"{self.local.url}/webhooks/replicate"

    def rows(self, sql: str, **args: Any) -> list[dict[str, Any]]:
        """Return the rows of a question, over a connection made anew after an outage."""
        for _ in range(2):
            if self._conn is None or self._conn.closed:
                self._conn = connect(self.url, name="acceptance-eyes")
            try:
                return self._conn.execute(sql, args).fetchall()
            except psycopg.OperationalError:
                self._conn.close()  # the database was killed since
        pytest.fail("PostgreSQL does not answer")

    def one(self, sql: str, **args: Any) -> dict[str, Any]:
        """Return the only row of a question."""
        (row,) = self.rows(sql, **args)
        return row

    def ask(self, script: dict[str, Any] | None = None, **registration: Any) -> Asked:
        """Start a prediction with a script (see the stand-in's faults) and register it."""
        made = self.standin.create_prediction(
            {"standin": {"duration_s": 0.3, "formats": ["png"], **(script or {})}}, self.hook
        )
        return self.register(made["id"], **registration)

    def register(self, external_id: str, *, status: int = 201, **registration: Any) -> Asked:
        """Register a prediction as an application does; 200 is the answer for one that is known."""
        asked = {"provider": "replicate", "external_id": external_id, "owner": "o1", **registration}
        url = f"{self.local.url}/v1/predictions"
        answer = patient(lambda: requests.post(url, json=asked, headers=self.token, timeout=30))
        assert answer.status_code == status, answer.text
        return Asked(external_id, UUID(answer.json()["job_id"]))

    def outputs(self, asked: Asked) -> list[dict[str, Any]]:
        """Return a job's outputs in their order."""
        return self.rows("SELECT * FROM outputs WHERE job_id = %(id)s ORDER BY idx", id=asked.job_id)

    def job(self, asked: Asked) -> dict[str, Any]:
        """Return a job's row."""
        return self.one("SELECT * FROM jobs WHERE id = %(id)s", id=asked.job_id)

    def await_end(self, *asked: Asked, seconds: float = 90.0) -> None:
        """Wait until jobs are settled and nothing of theirs waits any more."""
        until(lambda: not self._live(asked), f"{[str(a.job_id) for a in asked]} ended", seconds=seconds)

    def await_leased(self, asked: Asked) -> dict[str, Any]:
        """Return an output of a job as soon as a worker holds it and downloads."""
        leased = "SELECT * FROM outputs WHERE job_id = %(id)s AND lease_token IS NOT NULL"
        return until(lambda: next(iter(self.rows(leased, id=asked.job_id)), None), "a leased output")

    def _live(self, asked: tuple[Asked, ...]) -> bool:
        ids, names = [a.job_id for a in asked], [a.external_id for a in asked]
        found = self.one(
            """
            SELECT (SELECT count(*) FROM jobs WHERE id = ANY(%(ids)s) AND run_at IS NOT NULL)
                 + (SELECT count(*) FROM outputs WHERE job_id = ANY(%(ids)s) AND run_at IS NOT NULL)
                 + (SELECT count(*) FROM deliveries WHERE external_id = ANY(%(names)s) AND run_at IS NOT NULL) AS live
            """,
            ids=ids,
            names=names,
        )
        return bool(found["live"])

    def promised(self, asked: Asked, expected: str = "kept") -> dict[str, str]:
        """Return what the stand-in says it made, and must come to `expected`: path to sha256."""
        lines = self.standin.get_ledger()["summary"]["expected"][expected]
        return {line["path"]: line["sha256"] for line in lines if line["prediction"] == asked.external_id}

    def check(self, asked: Asked) -> None:
        """Hold a finished job to the rules: rows, objects and edges; compared with the stand-in's own ledger."""
        outputs, job = self.outputs(asked), self.job(asked)
        kept = {row["path"]: row for row in outputs if row["state"] == "kept"}
        assert {path: row["sha256"] for path, row in kept.items()} == self.promised(asked)
        variants = self.rows("SELECT * FROM variants WHERE render_id = %(id)s ORDER BY idx", id=asked.job_id)
        published = job["state"] in ("succeeded", "partial")
        assert [v["output_id"] for v in variants] == ([row["id"] for row in outputs if row["path"] in kept] * published)
        assert bool(variants) == published
        for row in kept.values():
            self._check_objects(row)
        self._check_edges(asked)

    def _check_objects(self, row: dict[str, Any]) -> None:
        for key, sha256, size in (
            (row["key"], row["sha256"], row["bytes"]),
            (row["thumb_key"], row["thumb_sha256"], row["thumb_bytes"]),
        ):
            if key is None:
                assert row["media"] == "video"
                assert row["thumb_missing"]
                continue
            stat = self.blobs.head(self.blobs.public_bucket, key)
            assert stat is not None
            assert (stat.sha256, stat.size_bytes) == (sha256, size)

    def _check_edges(self, asked: Asked) -> None:
        taken = self.rows("SELECT subject, from_state, to_state FROM events WHERE job_id = %(id)s", id=asked.job_id)
        strange = [e for e in taken if (e["from_state"], e["to_state"]) not in transitions.TRANSITIONS[e["subject"]]]
        assert strange == []

    def get(self, key: str) -> requests.Response:
        """Read an object as anyone can."""
        return requests.get(self.blobs.build_asset_url(key), timeout=30)

    def letters(self, asked: Asked) -> list[dict[str, Any]]:
        """Return the dead letters of a job, in the order of its outputs."""
        return self.rows(
            """
            SELECT d.*, o.path FROM dead_letters d LEFT JOIN outputs o ON o.id = d.subject_id
             WHERE d.job_id = %(id)s ORDER BY o.idx
            """,
            id=asked.job_id,
        )

    def end_others(self) -> None:
        """End the files that other tests left waiting: they could use up the crashes of a test, or show as failing."""
        left = "SELECT DISTINCT job_id AS id FROM outputs WHERE state = 'waiting'"
        for job in self.rows(f"SELECT id, settled_at IS NULL AS is_open FROM jobs WHERE id IN ({left})"):
            if job["is_open"]:
                requests.post(f"{self.local.url}/v1/jobs/{job['id']}/cancel", headers=self.token, timeout=30)
            requests.delete(f"{self.local.url}/v1/renders/{job['id']}", headers=self.token, timeout=30)
        until(lambda: not self.rows(left), "no file of another test waits")

    def arm(self, point: str) -> None:
        """Have the next process that gets to a failpoint die there."""
        (self.armed / point).touch()

    def disarm(self, point: str) -> None:
        """Have nobody die at a failpoint."""
        (self.armed / point).unlink(missing_ok=True)

    def is_armed(self, point: str) -> bool:
        """Return whether nobody has died at a failpoint yet."""
        return (self.armed / point).exists()

    def mend(self) -> None:
        """Start whatever a test left stopped or paused, disarm every failpoint, and return when all work again."""
        for file in self.armed.iterdir():
            file.unlink(missing_ok=True)
        self.local.restart_dead()
        for server in self.local.stack.servers:
            server.await_ready()
        for name, process in self.local.processes.items():
            process.await_ready()
            if name in WORKERS and self._heard.get(name) != process.pid:
                until(lambda name=name: self._hears(name), f"{name} takes messages")
                self._heard[name] = process.pid
        self.rows("DELETE FROM pauses RETURNING target")  # generated requests pause, too

    def _hears(self, name: str) -> bool:
        """Return whether a worker answers, which it does once it takes messages."""
        node = f"{name}@{gethostname()}"
        with Celery(broker=self.local.environment()["CELERY_BROKER_URL"], set_as_current=False) as asker:
            with contextlib.suppress(redis.ConnectionError):
                return bool(asker.control.ping([node], timeout=2, limit=1))
            return False

    def is_serving(self) -> bool:
        """Return whether the receiver answers."""
        try:
            return requests.get(f"{self.local.url}/healthz", timeout=5).status_code == 200
        except requests.RequestException:  # a receiver whose child is dead may still take connections
            return False

    @contextlib.contextmanager
    def broker(self) -> Iterator[redis.Redis]:
        """Give a connection to the broker itself."""
        with redis.Redis.from_url(self.local.stack.valkey.url()) as client:
            yield client

    def depth(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with self.broker() as client:
            return int(client.llen(queue))

    def push(self, queue: str, message: dict[str, Any], **headers: Any) -> None:
        """Put a message into a queue in the form that kombu gives it on Redis."""
        with self.broker() as client:
            properties = {
                "correlation_id": str(uuid4()),
                "delivery_info": {"exchange": queue, "routing_key": queue},
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            }
            whole = {"content-encoding": "utf-8", "content-type": "application/json", "headers": headers}
            client.lpush(queue, json.dumps({**whole, "properties": properties, **message}))

    def push_unknown_task(self, task: str) -> None:
        """Put a task that no worker knows into the queue `quick`."""
        body = base64.b64encode(b'[[], {}, {"callbacks": null}]').decode()
        self.push("quick", {"body": body}, lang="py", task=task, id=str(uuid4()), argsrepr="()", kwargsrepr="{}")

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of our processes, to see that none was started again."""
        assert all(process.is_running for process in self.local.processes.values())
        return {name: process.pid for name, process in self.local.processes.items()}

    @contextlib.contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """Have some of our processes stopped inside, all at once, and running again after."""
        stop_all(*(self.local.processes[name] for name in names))
        try:
            yield
        finally:
            for name in names:
                self.local.processes[name].launch()

    def rest(self) -> None:
        """Stop our processes and the servers; what they keep stays."""
        self.close()
        self.local.stop()
        self._rests = True

    def wake(self) -> None:
        """Start again what rests."""
        if self._rests:
            self._rests = False
            self.local.start()
            self.mend()

    def close(self) -> None:
        """Close what this side opened."""
        if self._conn is not None:
            self._conn.close()


def stop_all(*processes: Process) -> None:
    """Ask processes to end, then wait for each."""
    for process in processes:
        if process.is_running and process.pid:
            os.kill(process.pid, 15)
    for process in processes:
        process.stop()


def load_settings(environment: dict[str, str]) -> Settings:
    """Return the settings that a process with this environment reads."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return settings_module.load_settings()
