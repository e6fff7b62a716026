"""An application that is told of its jobs: a local HTTP server that takes notifications and answers as a test asks."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, dict[str, str]]


@dataclass
class Heard:
    """One request: its headers by lower-case name, and its raw body."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


@dataclass
class Application:
    """What it answers next, in turn (then 503 while `away`, else 204), and what it heard. `drips`: never done."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    before_answer: Callable[[], None] = lambda: None
    drips: bool = False
    away: bool = False
    error_body: bytes = b""

    def of(self, job_id: object) -> list[Heard]:
        return [one for one in self.heard if one.body["data"]["job_id"] == str(job_id)]


@contextmanager
def listening() -> Iterator[Application]:
    """Run an application on a free port of the loopback interface."""
    application = Application()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            application.heard.append(Heard(self.path, headers, raw))
            application.before_answer()
            if application.drips:
                self._drip()
                return
            status, more = application.answers.pop(0) if application.answers else (503 if application.away else 204, {})
            body = application.error_body if status >= 400 else b""
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 (the base class's name)

        def _drip(self) -> None:
            """Send a header byte by byte, each before any time-out of a socket."""
            self.close_connection = True
            try:
                while application.drips:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        application.url = f"http://127.0.0.1:{server.server_port}/hooks"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield application
        finally:
            application.drips = False
            server.shutdown()
            thread.join()
