"""The sockets: one port for the API and the outputs, and a private one, the trap, that nobody may be led to."""

import http.server
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedded.standin import pictures, webhooks
from embedded.standin.api import Answer, Api
from embedded.standin.clock import Clock
from embedded.standin.ledger import Ledger
from embedded.standin.outages import Outages
from embedded.standin.outputs import Outputs
from embedded.standin.predictions import Predictions
from embedded.standin.serving import Serving

_MAX_BODY: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """How to start: port 0 takes a free one; `pictures` and `ledger` may be left out."""

    host: str
    port: int
    token: str
    secret: str
    pictures: Path | None = None
    ledger: Path | None = None


class Server(http.server.ThreadingHTTPServer):
    """Answers requests on threads; a client that leaves is no error."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what is not merely a client that left."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "standin"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Log nothing: the ledger is the record."""


def start(options: Options) -> Server:
    """Return the bound server, its trap already answering; the caller runs `serve_forever`."""
    ledger, clock, outages = Ledger(options.ledger), Clock(), Outages()
    trap = _trap(ledger)
    server = Server((options.host, options.port), _Quiet)
    base_url = f"http://{options.host}:{server.server_port}"
    trap_url = f"http://127.0.0.1:{trap.server_port}"
    outputs = Outputs(base_url, trap_url, options.pictures, ledger)
    sender = webhooks.Sender(options.secret, clock, ledger)
    predictions = Predictions(base_url, outputs, sender, clock, ledger)
    api = Api(predictions, sender, ledger, outages, token=options.token, secret=options.secret, base_url=base_url)
    server.RequestHandlerClass = _handler(api, Serving(outputs, ledger, trap_url), outages)
    clock.after(0, trap.serve_forever)
    return server


def _handler(api: Api, serving: Serving, outages: Outages) -> type[_Quiet]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            steps = self.path.partition("?")[0].split("/")
            if len(steps) == 4 and steps[1] == "out":
                if outages.outputs():
                    _send(self, Answer(503, {"title": "Service Unavailable", "status": 503}))
                else:
                    serving.answer(self, steps[2])
            else:
                self._ask_api()

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self._ask_api()

        def _ask_api(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdigit() or int(length) > _MAX_BODY or "Transfer-Encoding" in self.headers:
                self.close_connection = True
                _send(self, Answer(413, {"title": "Payload Too Large", "status": 413}))
                return
            body = self.rfile.read(int(length))
            method = "GET" if self.command == "HEAD" else self.command
            _send(self, api.answer(method, self.path, self.headers.get("Authorization"), body))

    return Handler


def _send(request: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
    body = json.dumps(answer.body).encode()
    request.send_response(answer.status)
    request.send_header("Content-Type", "application/json" if answer.status < 400 else "application/problem+json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _trap(ledger: Ledger) -> Server:
    """Return a server that writes down who comes, and gives a good picture, so that an open guard shows."""

    class Handler(_Quiet):
        def do_GET(self) -> None:
            ledger.add("trap", path=self.path, token_sent="authorization" in self.headers)
            file = pictures.made("png", 0)
            self.send_response(200)
            self.send_header("Content-Type", file.content_type)
            self.send_header("Content-Length", str(len(file.data)))
            self.end_headers()
            self.wfile.write(file.data)

    return Server(("127.0.0.1", 0), Handler)
