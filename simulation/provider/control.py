"""Control API of the stand-in under /standin: its ledger, outages, and ends of predictions."""

import threading
import time

from simulation.provider.http_types import Api, Request, Response, not_found, parse_object
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
    def __init__(self, predictions: Predictions, ledger: Ledger, outage: Outage, token: str) -> None:
        super().__init__(f"Bearer {token}")
        self._predictions, self._ledger, self._outage = predictions, ledger, outage

    def handle(self, request: Request) -> Response:
        match request.method, request.steps:
            case "GET", ["ledger"]:
                lines = self._ledger.lines()
                return Response(200, {"summary": summarise(lines), "lines": lines})
            case "POST", ["outage"]:
                return self._begin_outage(request.body)
            case "POST", ["predictions", prediction_id, "succeed"]:
                if not self._predictions.succeed(prediction_id):
                    raise not_found()
                return Response(200, {})
            case _:
                raise not_found()

    def _begin_outage(self, body: bytes) -> Response:
        fields = parse_object(body)
        self._outage.begin(float(fields["seconds"]), outputs=fields.get("outputs") is True)
        return Response(200, {})
