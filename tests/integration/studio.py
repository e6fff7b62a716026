"""A provider that takes orders over local HTTP: Replicate's, fal's and OpenAI's doors in one, with scripted answers."""

import base64
import hashlib
import http.server
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from db import leases
from moorage.model import FallbackEntry, JobRequest
from tasks.jobs import create
from tests.integration.core import World, png
from tests.support import fork_server

ROOT = Path(__file__).resolve().parent.parent.parent
Script = tuple[int, dict[str, str]]


@dataclass
class Studio:
    """
    What it was asked, and what it made.

    Args:
        script: what the next orders come to, (status, headers) each; a 5xx is answered after the order was taken.
            An empty script takes all.
        is_listed: whether what it makes stands in its list.
        on_order: called with each order's webhook address before it is answered.
    """

    port: int = 0
    script: list[Script] = field(default_factory=list)
    orders: list[dict[str, Any]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    is_listed: bool = True
    list_status: int = 200
    on_order: Callable[[str], None] = lambda _hook: None
    lock: Any = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def key_sha256(self, number: int = -1) -> str:
        """Return the hash of the key that an order's webhook address held."""
        key = parse_qs(urlsplit(self.orders[number]["webhook"]).query)["key"][0]
        return hashlib.sha256(key.encode()).hexdigest()

    def take(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]]:
        hook = body.get("webhook") or parse_qs(urlsplit(path).query).get("fal_webhook", [""])[0]
        with self.lock:
            self.orders.append({"path": path, "webhook": hook, "body": body})
            status, headers = self.script.pop(0) if self.script else (201, {})
            made = {"id": f"p{len(self.orders)}", "status": "starting", "webhook": hook, "input": {}}
            made["created_at"] = datetime.now(UTC).isoformat()
            if status < 400 or status >= 500:
                self.made.append(made)
        self.on_order(hook)
        if status >= 400:
            return status, headers, {"detail": "no"}
        if path.startswith("/v1/images"):
            return 200, {"x-request-id": made["id"]}, {"data": [{"b64_json": base64.b64encode(png(9)).decode()}]}
        return status, headers, {**made, "request_id": made["id"]}

    def picture(self) -> str:
        """Return the URL of a small picture."""
        return f"{self.url}/files/picture.png"

    def answer(self, path: str) -> tuple[int, dict[str, Any] | bytes]:
        parts = urlsplit(path)
        if parts.path.startswith("/files/"):
            return 200, png(9)
        if parts.path == "/v1/predictions":
            self.looks += 1
            since = datetime.fromisoformat(parse_qs(parts.query)["created_after"][0])
            recent = [made for made in self.made[::-1] if datetime.fromisoformat(made["created_at"]) >= since]
            return self.list_status, {"results": recent if self.is_listed else [], "next": None}
        known = {made["id"]: made for made in self.made}
        found = known.get(parts.path.rpartition("/")[2])
        return (200, found) if found else (404, {})


@contextmanager
def open_studio() -> Iterator[Studio]:
    """Run a studio on a free port."""
    studio = Studio()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*studio.answer(self.path), {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, fields = studio.take(self.path, body)
            self._send(status, fields, headers)

        def _send(self, status: int, fields: dict[str, Any] | bytes, headers: dict[str, str]) -> None:
            body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        studio.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield studio
        finally:
            server.shutdown()
            thread.join()


def entry(provider: str = "replicate", seconds: float = 60.0, **given: Any) -> FallbackEntry:
    models = {"replicate": "acme/pictures", "fal": "fal-ai/flux", "openai": "gpt-image-1"}
    return FallbackEntry(provider, models[provider], {"prompt": "a harbour", **given}, seconds)


def ordered(at: World, *chain: FallbackEntry, deadline_seconds: float = 900.0) -> create.CreatedJob:
    """Commit a job with its planned prediction, as the API does."""
    wish = JobRequest(owner="ann", kind="image", fallback_chain=chain or (entry(),), deadline_seconds=deadline_seconds)
    return create.create_job(at.deps.database, at.deps.settings, at.deps.providers, wish)


def tries(at: World, job_id: UUID) -> list[dict[str, Any]]:
    """Return a job's predictions in the order of its history."""
    return at.conn.execute("SELECT * FROM predictions WHERE job_id = %s ORDER BY seq", (job_id,)).fetchall()


def crash(
    at: World, step: str, row_id: UUID, point: str, environment: dict[str, str], *, prepare: str = "pass"
) -> None:
    """Take one wake in a process of its own that dies at a failpoint, and free its lease as its parent does."""
    leased_by = f"node@crash/{point}"
    code = f"{prepare}; from uuid import UUID; from worker import step_runner; "
    code += f"step_runner.run_step({step!r}, UUID({str(row_id)!r}), {leased_by!r})"
    given = {"PATH": os.environ["PATH"], "MOORAGE_DOTENV": "", "MOORAGE_FAILPOINT": point, **environment}
    process = fork_server.run(["-c", code], env=given, cwd=ROOT)
    assert process.returncode == -signal.SIGKILL, process.stderr
    free(at, leased_by)


def free(at: World, leased_by: str) -> None:
    """Free what a dead worker child held."""
    leases.release_held_by(at.conn, leased_by, "its process died")
