"""The HTTP servers: a port for APIs and outputs, and the trap, a private port that must receive no request."""

import argparse
import http.server
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from simulation.provider import declared, http_types, pictures, webhooks
from simulation.provider.fal import FalApi, derive_signing_key, fal_signer
from simulation.provider.http_types import Api, Handler, Refused, Request, Response, not_found, parse_object, problem
from simulation.provider.ledger import Ledger, summarise
from simulation.provider.openai import OpenAIApi
from simulation.provider.outputs import Outputs
from simulation.provider.predictions import Predictions
from simulation.provider.replicate import ReplicateApi
from simulation.provider.webhooks import Scheduler

_MAX_BODY_BYTES: Final = 16 * 2**20
_UNAVAILABLE: Final = problem(503, "Service Unavailable", "The API is temporarily unavailable.")


class ControlApi(Api):
    """For who controls the stand-in: its ledger, ends of predictions, and outages."""

    def __init__(self, predictions: Predictions, ledger: Ledger, token: str) -> None:
        super().__init__(f"Bearer {token}")
        self._predictions, self._ledger = predictions, ledger
        self._outage = (0.0, False)  # the end of the last one, and whether it includes outputs

    def is_outage(self, *, outputs: bool = False) -> bool:
        """Return True if the APIs, or the outputs, must return 503 now."""
        until, includes_outputs = self._outage
        return time.monotonic() < until and (includes_outputs or not outputs)

    def handle(self, request: Request) -> Response:
        match request.method, request.steps:
            case "GET", ["ledger"]:
                lines = self._ledger.lines()
                return Response(200, {"summary": summarise(lines), "lines": lines})
            case "POST", ["outage"]:
                fields = parse_object(request.body)
                self._outage = time.monotonic() + float(fields["seconds"]), fields.get("outputs") is True
                return Response(200, {})
            case "POST", ["predictions", prediction_id, "succeed"]:
                if not self._predictions.succeed(prediction_id):
                    raise not_found()
                return Response(200, {})
            case _:
                raise not_found()


class Server(http.server.ThreadingHTTPServer):
    """Handles requests on threads; a closed connection is not an error."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def start_server(options: argparse.Namespace) -> Server:
    """Return the bound server, with its trap running. `options`: of the command line, see `__main__.py`."""
    ledger, scheduler = Ledger(options.ledger), Scheduler()
    trap = _build_trap(ledger)
    server = Server(("127.0.0.1", options.port), Handler)
    base_url, trap_url = (f"http://127.0.0.1:{one.server_port}" for one in (server, trap))
    outputs = Outputs(base_url, trap_url, options.pictures, ledger)
    fal_signing_key = derive_signing_key(options.secret)
    signers = {"replicate": webhooks.standard_signer(options.secret), "fal": fal_signer(fal_signing_key)}
    declarations = declared.read_declarations(options.providers)
    for name, table in declarations.items():
        signers[name] = declared.build_signer(table, options.secret, fal_signing_key)
    sender = webhooks.Sender(signers, scheduler, ledger)
    predictions = Predictions(outputs, sender, scheduler, ledger)
    token, fal_key = options.token, http_types.fal_key(options.token)
    control = ControlApi(predictions, ledger, token)
    apis: dict[str, Api] = {
        "standin": control,
        "v1": ReplicateApi(predictions, token=token, base_url=base_url),
        "fal": FalApi(predictions, key=fal_key, base_url=f"{base_url}/fal", signing_key=fal_signing_key),
        "declared": declared.DeclaredApi(predictions, declarations, token=token, base_url=f"{base_url}/declared"),
        "openai": OpenAIApi(predictions, key=http_types.openai_key(token)),
    }
    server.RequestHandlerClass = _build_handler(apis, outputs, control)
    scheduler.run_after(0, trap.serve_forever)
    return server


def _build_handler(apis: Mapping[str, Api], outputs: Outputs, control: ControlApi) -> type[Handler]:
    class RequestHandler(Handler):
        def respond(self) -> None:
            steps = self.path.partition("?")[0].split("/")
            length = self.headers.get("Content-Length", "0")
            if len(steps) == 4 and steps[1] == "out" and self.command == "GET":
                if control.is_outage(outputs=True):
                    _send(self, _UNAVAILABLE)
                else:
                    outputs.respond(self, steps[2])
            elif not length.isdigit() or int(length) > _MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
                self.close_connection = True
                _send(self, problem(413, "Payload Too Large", "The body is too large, or its length is missing."))
            else:
                _send(self, _dispatch(apis, control, self, self.rfile.read(int(length))))

    return RequestHandler


def _dispatch(apis: Mapping[str, Api], control: ControlApi, handler: Handler, body: bytes) -> Response:
    """Return the response of the API that the path names, which may be an error."""
    parts = urlsplit(handler.path)
    name, *steps = [step for step in parts.path.split("/") if step] or [""]
    authorization = handler.headers.get("Authorization") or f"Bearer {handler.headers.get('x-key')}"
    content_type = handler.headers.get("Content-Type", "")
    request = Request(handler.command, steps, parse_qs(parts.query), authorization, body, content_type)
    try:
        if name not in apis:
            raise not_found()
        apis[name].authenticate(request)
        if apis[name] is not control and control.is_outage():
            raise Refused(_UNAVAILABLE)
        return apis[name].handle(request)
    except Refused as refused:
        return refused.response


def _send(handler: Handler, response: Response) -> None:
    time.sleep(response.delay_s)
    if response.is_dropped:
        handler.close_connection = True
        return
    headers = {"Content-Type": "application/json", **response.headers}
    handler.send_all(response.status, headers, json.dumps(response.body).encode())


def _build_trap(ledger: Ledger) -> Server:
    """Return a server that records every request and serves a valid picture, so that an open guard is noticed."""

    class RequestHandler(Handler):
        def respond(self) -> None:
            ledger.add("trap", path=self.path, token_sent="authorization" in self.headers)
            file = pictures.generate("png", 0)
            self.send_all(200, {"Content-Type": file.content_type}, file.data)

        do_HEAD = Handler.do_GET  # noqa: N815 (name of the base class)

    return Server(("127.0.0.1", 0), RequestHandler)
