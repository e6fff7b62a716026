"""The sockets: one port for the API and the outputs, and a private one, the trap, that nobody may be led to."""

import http.server
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from simulation.provider import fal, fal_webhooks, keys, pictures, webhooks
from simulation.provider.api import ReplicateApi
from simulation.provider.clock import Clock
from simulation.provider.control import Control
from simulation.provider.exchange import Answer, Door, Refused, Request, not_found, problem
from simulation.provider.ledger import Ledger
from simulation.provider.openai import OpenAIApi
from simulation.provider.outages import Outages
from simulation.provider.outputs import Outputs
from simulation.provider.predictions import Predictions
from simulation.provider.serving import Serving
from simulation.provider.submissions import Submissions

_MAX_BODY: Final = 16 * 2**20
_AWAY: Final = problem(503, "Service Unavailable", "The API is away for a while.")


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
    signing = fal_webhooks.signing_key(options.secret)
    signers = {"replicate": webhooks.standard_signer(options.secret), "fal": fal_webhooks.signer(signing)}
    sender, submissions = webhooks.Sender(signers, clock, ledger), Submissions(ledger)
    predictions = Predictions(outputs, sender, clock, ledger)
    shared, token = (predictions, submissions, outputs.files), options.token
    doors: dict[str, Door] = {
        "standin": Control(sender, ledger, outages, token=token),
        "v1": ReplicateApi(*shared, token=token, secret=options.secret, base_url=base_url),
        "fal": fal.FalApi(*shared, key=keys.fal(token), base_url=f"{base_url}/fal", signing=signing),
        "openai": OpenAIApi(*shared, key=keys.openai(token), base_url=f"{base_url}/openai"),
    }
    server.RequestHandlerClass = _handler(doors, Serving(outputs, ledger, trap_url), outages)
    clock.after(0, trap.serve_forever)
    return server


def _handler(doors: Mapping[str, Door], serving: Serving, outages: Outages) -> type[_Quiet]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            steps = self.path.partition("?")[0].split("/")
            if len(steps) == 4 and steps[1] == "out":
                if outages.outputs():
                    _send(self, _AWAY)
                else:
                    serving.answer(self, steps[2])
            else:
                self._ask_api()

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self._ask_api()

        def do_PUT(self) -> None:
            self._ask_api()

        def _ask_api(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdigit() or int(length) > _MAX_BODY or "Transfer-Encoding" in self.headers:
                self.close_connection = True
                _send(self, problem(413, "Payload Too Large", "The body is too large, or its length is not given."))
                return
            body = self.rfile.read(int(length))
            _send(self, _answer(doors, outages, self, body))

    return Handler


def _answer(
    doors: Mapping[str, Door], outages: Outages, request: http.server.BaseHTTPRequestHandler, body: bytes
) -> Answer:
    """Return what the API says that the path begins with; errors are answers too."""
    parts = urlsplit(request.path)
    name, *steps = [step for step in parts.path.split("/") if step] or [""]
    method = "GET" if request.command == "HEAD" else request.command
    headers = request.headers
    asked = Request(
        method, steps, parse_qs(parts.query), headers.get("Authorization"), headers.get("Content-Type", ""), body
    )
    try:
        if name not in doors:
            raise not_found()
        doors[name].admit(asked)
        if name != "standin" and outages.api():
            raise Refused(_AWAY)
        return doors[name].answer(asked)
    except Refused as refused:
        return refused.answer


def _send(request: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
    time.sleep(answer.after_s)
    if answer.cut:
        request.close_connection = True
        return
    body = json.dumps(answer.body).encode()
    request.send_response(answer.status)
    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
        request.send_header(name, value)
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
