"""
A complete moorage for a bench, with the servers and settings of `moorage up`, and a server of output files.

The application's part, too: predictions are registered through the API, or copied in SQL where thousands are needed,
and their webhooks are signed as Replicate's. PostgreSQL flushes every commit to disk.
"""

import base64
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests
from celery import Celery
from celery.utils.nodenames import gethostname

from bench import processes, results
from bench.load import LoadResult, send_bodies
from db.connection import Connection, connect, fetch_all
from embedded.server import Server
from embedded.stack import Stack
from moorage.ids import uuid7
from moorage.settings import Settings
from storage import buckets, s3
from worker import queues
from worker.local_deployment import LocalDeployment

SIGNING_SECRET: Final = "whsec_" + base64.b64encode(b"moorage-bench-signs-with-this-key").decode()
OWNER: Final = "bench"
REGISTERING_THREADS: Final = 4
DEADLINE_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A running deployment and what an application needs to use it."""

    local: LocalDeployment
    files_port: int
    conn: Connection
    folder: Path
    secret: str = SIGNING_SECRET
    others: Sequence[Server] = ()  # servers beside those of the stack

    @property
    def workers(self) -> dict[str, int]:
        """Return the process ids of all workers of Celery, by name."""
        others = ("receiver", "beat", "flower")
        return {name: pid for name, pid in self.processes.items() if not name.startswith(others)}

    @property
    def processes(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.local.processes.items() if process.pid}

    @property
    def servers(self) -> dict[str, int]:
        return {server.name: server.pid for server in (*self.local.stack.servers, *self.others) if server.pid}

    def measure_cpu(self) -> dict[str, float]:
        """Return the CPU time of each process of moorage and of each server, with its descendants, without our own."""
        used = {name: processes.cpu_seconds(pid) for name, pid in (self.processes | self.servers).items()}
        used["postgres"] -= processes.cpu_seconds(self.conn.info.backend_pid)
        return used

    def count_keep_runs(self) -> int:
        """Return how often workers have run the task `keep`, without result after a repeated wake: Celery's count."""
        nodes = [f"{name}@{gethostname()}" for name in self.workers if name.startswith("keep")]
        with Celery(broker=self.local.environment()["CELERY_BROKER_URL"], set_as_current=False) as app:
            stats = app.control.inspect(nodes, timeout=10, limit=len(nodes)).stats() or {}
        if set(stats) != set(nodes):
            raise SystemExit(f"of the workers {', '.join(nodes)} only {', '.join(stats) or 'none'} answered")
        return sum(stat["total"].get(queues.TASK_BY_STEP["keep"], 0) for stat in stats.values())

    def create_ids(self, count: int) -> list[str]:
        """Return ids of predictions that do not exist yet."""
        run = secrets.token_hex(4)
        return [f"b{run}{number}" for number in range(count)]

    def register(self, external_ids: Sequence[str]) -> None:
        """Register predictions through the API."""

        def register(some: Sequence[str]) -> None:
            with requests.Session() as session:
                session.headers["Authorization"] = f"Bearer {self.local.secrets['api_token']}"
                for external_id in some:
                    body = {"provider": "replicate", "external_id": external_id, "owner": OWNER}
                    session.post(f"{self.local.url}/v1/predictions", json=body, timeout=60).raise_for_status()

        with ThreadPoolExecutor(REGISTERING_THREADS) as pool:
            list(pool.map(register, [external_ids[n::REGISTERING_THREADS] for n in range(REGISTERING_THREADS)]))

    def copy_registration(self, external_ids: Sequence[str]) -> None:
        """Register one prediction through the API, and copy its rows for the others."""
        self.register(external_ids[:1])
        given = {"first": external_ids[0], "others": list(external_ids[1:])}
        given |= {name: [uuid7() for _ in external_ids[1:]] for name in ("jobs", "predictions")}
        with self.conn.transaction():
            for statement in COPY_ROWS:
                self.conn.execute(statement, given)

    def build_bodies(self, external_ids: Sequence[str], *, files: int = 1, format_: str = "jpeg") -> list[bytes]:
        """Return the bodies of webhooks that report success."""
        return [
            json.dumps(
                {
                    "id": external_id,
                    "status": "succeeded",
                    "model": "black-forest-labs/flux-schnell",
                    "output": [f"http://127.0.0.1:{self.files_port}/{external_id}-{n}.{format_}" for n in range(files)],
                }
            ).encode()
            for external_id in external_ids
        ]

    def send(self, bodies: Sequence[bytes], *, connections: int = 16, port: int = 0) -> LoadResult:
        """Send webhooks at once. Raises SystemExit if one is not accepted."""
        result = send_bodies(port or self.local.port, bodies, self.secret, connections=connections, folder=self.folder)
        if result.statuses != {"202": len(bodies)}:
            raise SystemExit(f"not all webhooks were accepted: {result.statuses}")
        return result

    def publish(self, count: int, format_: str = "jpeg") -> dict[str, Any]:
        """Register predictions, then send their webhooks at once; return what it took until all were published."""
        external_ids = self.create_ids(count)
        self.register(external_ids)
        self.await_idle()
        return self.publish_registered(external_ids, format_)

    def publish_registered(
        self, external_ids: Sequence[str], format_: str = "jpeg", *, other_port: int = 0
    ) -> dict[str, Any]:
        """Send the webhooks to one or two receivers; return what it took until all renders were published."""
        bodies = self.build_bodies(external_ids, format_=format_)
        runs, before = self.count_keep_runs(), self.measure_cpu()
        ports = (self.local.port, other_port or self.local.port)
        with ThreadPoolExecutor(len(ports)) as pool:
            sent = list(pool.map(lambda n: self.send(bodies[n::2], connections=8, port=ports[n]), range(2)))
        self.await_published(external_ids)
        used = subtract(self.measure_cpu(), before)
        facts = fetch_all(self.conn, RECORDED, {"ids": list(external_ids)})[0]
        if facts["kept"] != len(external_ids):
            raise SystemExit(f"{len(external_ids) - facts['kept']} outputs are missing")
        self.await_idle()  # also repeated wakes have been served
        return {
            "outputs": len(external_ids),
            "seconds": facts["ended"] - min(result.started_at for result in sent),
            "cpu_seconds": sum(used[name] for name in self.workers),
            "cpu_by_process": used,
            "keep_runs": (self.count_keep_runs() - runs) / facts["kept"],
        }

    def await_published(self, external_ids: Sequence[str]) -> None:
        def are_published() -> bool:
            row = fetch_all(self.conn, COUNT_PUBLISHED, {"ids": list(external_ids)})[0]
            return bool(row["published"] == len(external_ids))

        processes.await_true(are_published, "publishing all renders", seconds=DEADLINE_SECONDS)

    def await_idle(self) -> None:
        processes.await_idle(self.processes.values())


COPY_ROWS: Final = (
    """
INSERT INTO jobs
SELECT copy.* FROM predictions p JOIN jobs j ON j.id = p.job_id, unnest(%(jobs)s::uuid[]) AS new (id),
       jsonb_populate_record(j, jsonb_build_object('id', new.id)) AS copy
 WHERE p.external_id = %(first)s
""",
    """
INSERT INTO predictions
SELECT copy.*
  FROM predictions p,
       unnest(%(predictions)s::uuid[], %(jobs)s::uuid[], %(others)s::text[]) AS new (id, job, external_id),
       jsonb_populate_record(p, jsonb_build_object('id', new.id, 'job_id', job, 'external_id', new.external_id)) AS copy
 WHERE p.external_id = %(first)s
""",
    """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor, at)
SELECT e.subject, CASE e.subject WHEN 'job' THEN new.job ELSE new.id END, new.job, e.from_state, e.to_state, e.actor,
       e.at
  FROM predictions p JOIN events e ON e.job_id = p.job_id AND e.subject IN ('job', 'prediction'),
       unnest(%(predictions)s::uuid[], %(jobs)s::uuid[]) AS new (id, job)
 WHERE p.external_id = %(first)s
""",
)

COUNT_PUBLISHED: Final = """
SELECT count(*) AS published
  FROM predictions p JOIN renders r ON r.id = p.job_id
 WHERE p.external_id = ANY(%(ids)s) AND EXISTS (SELECT 1 FROM outputs o WHERE o.job_id = r.id AND o.state = 'kept')
"""

RECORDED: Final = """
SELECT count(*) AS kept,
       extract(epoch FROM max(greatest(r.published_at, o.ended_at)))::float AS ended
  FROM predictions p JOIN outputs o ON o.prediction_id = p.id JOIN renders r ON r.id = p.job_id
 WHERE p.external_id = ANY(%(ids)s) AND o.state = 'kept'
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """PostgreSQL, Valkey and SeaweedFS in a new folder, and the server of output files."""

    stack: Stack
    files_port: int
    folder: Path


@contextlib.contextmanager
def start_servers(formats: Sequence[str] = ()) -> Iterator[Servers]:
    with contextlib.ExitStack() as stops:
        folder = Path(stops.enter_context(tempfile.TemporaryDirectory(prefix="moorage-bench-")))
        folder.chmod(0o755)  # PostgreSQL runs as another user
        files_port = stops.enter_context(serve_files(formats))
        stack = stops.enter_context(Stack(folder / "up"))
        given: Any = {"_env_file": None, **stack.environment()}
        settings = Settings(**given)
        buckets.ensure_buckets(s3.ObjectStore(settings), settings)
        yield Servers(stack, files_port, folder)


def build_settings(servers: Servers) -> dict[str, str]:
    """Return the settings for the webhooks and the files of a bench."""
    return {
        "REPLICATE_WEBHOOK_SECRET": SIGNING_SECRET,
        "REPLICATE_OUTPUT_HOSTS": "127.0.0.1",
        "MOORAGE_EGRESS_ALLOW": f"127.0.0.1:{servers.files_port}",
    }


@contextlib.contextmanager
def start(
    servers: Servers,
    *,
    keep_workers: int = 1,
    concurrency: int = 0,
    flower: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> Iterator[Bench]:
    """Start moorage's processes as `moorage up` does, and stop them at the end of the block."""
    settings = {**build_settings(servers), **(overrides or {})}
    counts = {"keep_workers": keep_workers, "concurrency": concurrency}
    local = LocalDeployment(servers.folder / "up", stack=servers.stack, flower=flower, overrides=settings, **counts)
    with local, contextlib.closing(connect_directly(servers.stack)) as conn:
        require_durable(conn)
        bench = Bench(local, servers.files_port, conn, servers.folder)
        bench.await_idle()
        yield bench


def connect_directly(stack: Stack) -> Connection:
    """Return a connection of the bench itself, whatever moorage's processes use."""
    return connect(stack.environment()["DATABASE_URL"])


def require_durable(conn: Connection) -> None:
    for setting in ("fsync", "synchronous_commit"):
        if fetch_all(conn, "SELECT current_setting(%(name)s) AS value", {"name": setting})[0]["value"] != "on":
            raise SystemExit(f"{setting} is off: nothing would be durable")


@contextlib.contextmanager
def serve_files(formats: Sequence[str] = (), port: int = 0) -> Iterator[int]:
    """Run the server of output files; yield its port."""
    command = [sys.executable, "-m", "bench.file_server", str(port), *formats]
    environment = {**os.environ, "PYTHONPATH": str(results.ROOT)}
    process = subprocess.Popen(command, cwd=results.ROOT, env=environment, stdout=subprocess.PIPE)
    try:
        yield int((process.stdout or sys.stdin.buffer).readline())
    finally:
        process.kill()
        process.communicate()


def subtract(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}
