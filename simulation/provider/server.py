"""The HTTP servers: a port for APIs and outputs, and the trap, a private port that must receive no request."""

import http.server
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from simulation.provider import fal_webhooks, pictures, webhooks
from simulation.provider.control import ControlApi, Outage
from simulation.provider.fal import FalApi
from simulation.provider.http_types import Api, Refused, Request, Response, not_found, problem
from simulation.provider.keys import fal_key, openai_key
from simulation.provider.ledger import Ledger
from simulation.provider.openai import OpenAIApi
from simulation.provider.output_responses import OutputResponder
from simulation.provider.outputs import Outputs
from simulation.provider.predictions import Predictions
from simulation.provider.replicate import ReplicateApi
from simulation.provider.scheduler import Scheduler
from simulation.provider.submissions import Submissions

_MAX_BODY_BYTES: Final = 16 * 2**20
_UNAVAILABLE: Final = problem(503, "Service Unavailable", "The API is temporarily unavailable.")


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int  # 0: a free one
    token: str
    secret: str
    pictures: Path | None = None
    ledger: Path | None = None


class Server(http.server.ThreadingHTTPServer):
    """Handles requests on threads; a closed connection is not an error."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "standin"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Log nothing: the ledger is the record."""


def start_server(options: Options) -> Server:
    """Return the bound server, with its trap running; the caller runs `serve_forever`."""
    ledger, scheduler, outage = Ledger(options.ledger), Scheduler(), Outage()
    trap = _build_trap(ledger)
    server = Server((options.host, options.port), _Handler)
    base_url = f"http://{options.host}:{server.server_port}"
    trap_url = f"http://127.0.0.1:{trap.server_port}"
    outputs = Outputs(base_url, trap_url, options.pictures, ledger)
    fal_signing_key = fal_webhooks.derive_signing_key(options.secret)
    signers = {
        "replicate": webhooks.standard_signer(options.secret),
        "fal": fal_webhooks.fal_signer(fal_signing_key),
    }
    sender = webhooks.Sender(signers, scheduler, ledger)
    submissions = Submissions(Predictions(outputs, sender, scheduler, ledger), ledger, outputs.files)
    token = options.token
    apis: dict[str, Api] = {
        "standin": ControlApi(sender, ledger, outage, token=token),
        "v1": ReplicateApi(submissions, token=token, secret=options.secret, base_url=base_url),
        "fal": FalApi(submissions, key=fal_key(token), base_url=f"{base_url}/fal", signing_key=fal_signing_key),
        "openai": OpenAIApi(submissions, key=openai_key(token)),
    }
    server.RequestHandlerClass = _build_handler(apis, OutputResponder(outputs, ledger, trap_url), outage)
    scheduler.run_after(0, trap.serve_forever)
    return server


def _build_handler(apis: Mapping[str, Api], responder: OutputResponder, outage: Outage) -> type[_Handler]:
    class Handler(_Handler):
        def do_GET(self) -> None:
            steps = self.path.partition("?")[0].split("/")
            if len(steps) != 4 or steps[1] != "out":
                self._call_api()
            elif outage.is_active(outputs=True):
                _send(self, _UNAVAILABLE)
            else:
                responder.respond(self, steps[2])

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self._call_api()

        def do_PUT(self) -> None:
            self._call_api()

        def _call_api(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdigit() or int(length) > _MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
                self.close_connection = True
                _send(self, problem(413, "Payload Too Large", "The body is too large, or its length is missing."))
                return
            _send(self, _dispatch(apis, outage, self, self.rfile.read(int(length))))

    return Handler


def _dispatch(
    apis: Mapping[str, Api], outage: Outage, handler: http.server.BaseHTTPRequestHandler, body: bytes
) -> Response:
    """Return the response of the API that the path names, which may be an error."""
    parts = urlsplit(handler.path)
    name, *steps = [step for step in parts.path.split("/") if step] or [""]
    method = "GET" if handler.command == "HEAD" else handler.command
    request = Request(method, steps, parse_qs(parts.query), handler.headers.get("Authorization"), body)
    try:
        if name not in apis:
            raise not_found()
        apis[name].authenticate(request)
        if name != "standin" and outage.is_active():
            raise Refused(_UNAVAILABLE)
        return apis[name].handle(request)
    except Refused as refused:
        return refused.response


def _send(handler: http.server.BaseHTTPRequestHandler, response: Response) -> None:
    time.sleep(response.delay_s)
    if response.is_dropped:
        handler.close_connection = True
        return
    body = json.dumps(response.body).encode()
    handler.send_response(response.status)
    for name, value in {"Content-Type": "application/json", **response.headers}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def _build_trap(ledger: Ledger) -> Server:
    """Return a server that records every request and serves a valid picture, so that an open guard is noticed."""

    class Handler(_Handler):
        def do_GET(self) -> None:
            ledger.add("trap", path=self.path, token_sent="authorization" in self.headers)
            file = pictures.generate("png", 0)
            self.send_response(200)
            self.send_header("Content-Type", file.content_type)
            self.send_header("Content-Length", str(len(file.data)))
            self.end_headers()
            self.wfile.write(file.data)

    return Server(("127.0.0.1", 0), Handler)
