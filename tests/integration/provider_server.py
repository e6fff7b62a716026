"""A provider's API that answers exactly as a test wants, and remembers what it was asked; and providers that ask it."""

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import providers
from moorage.settings import Settings
from providers import Provider
from tests.support import declared

TOKENS = {
    "replicate": "r8_secret_token", "fal": "id:secret_of_fal", "openai": "sk-secret_token", "bfl": "key_secret_of_bfl",
}  # fmt: skip
Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def answer(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    """Return an answer with a body and its length; `Retry_After` is the header Retry-After."""

    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return send


class Server(ThreadingHTTPServer):
    """Responds to every request as configured, by default or by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Answer = answer(200)
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.connections = 0
        self.reads_bodies = True
        self.over = threading.Event()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the client hangs up in some tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.server.reads_bodies else b""
        self.server.asked.append(Asked(self.command, self.path, dict(self.headers), body))
        self.server.answers.get(self.path, self.server.answer)(self)

    do_GET = do_PUT = do_POST  # noqa: N815 (the names are http.server's)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server for a while."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def provider_at(name: str, port: int, *, scheme: str = "http", host: str = "127.0.0.1", **given: Any) -> Provider:
    """Return a provider whose API is at a port."""
    url = f"{scheme}://{host}:{port}"
    settings: dict[str, Any] = {
        "database_url": "postgresql://moorage@localhost/moorage",
        "broker_url": "redis://localhost",
        "replicate_api_token": TOKENS["replicate"],
        "replicate_api_url": url,
        "fal_key": TOKENS["fal"],
        "fal_queue_url": url,
        "openai_api_key": TOKENS["openai"],
        "openai_api_url": url,
        "egress_allow": f"127.0.0.1:{port}",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file, pytest.MonkeyPatch.context() as patch:
        entry = declared.CATALOG[0].with_name("bfl.toml").read_text(encoding="utf-8")
        file.write(entry.replace("https://api.us.bfl.ai", url))
        file.flush()
        patch.setenv("BFL_API_KEY", TOKENS["bfl"])
        patch.setenv("BFL_WEBHOOK_SECRET", "secret_of_the_webhooks")
        return providers.load(Settings(_env_file=None, providers_file=file.name, **{**settings, **given}))[name]
