"""Control API of the stand-in under /standin: its ledger, outages, suppressed webhooks, and ends of predictions."""

import threading
import time

from simulation.provider import webhooks
from simulation.provider.http_types import Api, Refused, Request, Response, not_found, parse_object, problem
from simulation.provider.ledger import Ledger, summarise
from simulation.provider.predictions import Predictions


class Outage:
    """A period in which the APIs, and optionally the outputs, return 503. A new period replaces the last one."""

    def __init__(self) -> None:
        self._until = 0.0
        self._includes_outputs = False
        self._lock = threading.Lock()

    def begin(self, seconds: float, *, outputs: bool) -> None:
        with self._lock:
            self._until, self._includes_outputs = time.monotonic() + seconds, outputs

    def is_active(self, *, outputs: bool = False) -> bool:
        """Return True if the APIs, or the outputs, are unavailable now."""
        with self._lock:
            return time.monotonic() < self._until and (self._includes_outputs or not outputs)


class ControlApi(Api):
    def __init__(
        self, predictions: Predictions, sender: webhooks.Sender, ledger: Ledger, outage: Outage, token: str
    ) -> None:
        super().__init__(f"Bearer {token}")
        self._predictions, self._sender, self._ledger, self._outage = predictions, sender, ledger, outage

    def handle(self, request: Request) -> Response:
        match request.method, request.steps:
            case "GET", ["ledger"]:
                lines = self._ledger.lines()
                return Response(200, {"summary": summarise(lines), "lines": lines})
            case "POST", ["outage" | "silence" as command]:
                return self._interrupt(command, request.body)
            case "POST", ["predictions", prediction_id, "succeed"]:
                if not self._predictions.succeed(prediction_id):
                    raise not_found()
                return Response(200, {})
            case _:
                raise not_found()

    def _interrupt(self, command: str, body: bytes) -> Response:
        fields = parse_object(body)
        seconds = fields.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            raise Refused(problem(422, "Input validation failed", "seconds must be a number, 0 or more"))
        if command == "silence":
            self._sender.suppress(seconds)
        else:
            self._outage.begin(seconds, outputs=fields.get("outputs") is True)
        return Response(200, {"seconds": seconds})
