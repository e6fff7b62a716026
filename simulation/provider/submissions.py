"""
Submission faults, the same at every provider; selected by `"submit"` in the script.

The first `submit_times` submissions with the same model and input get the fault, later ones succeed; 0: every one.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from simulation.provider.http_types import Response
from simulation.provider.ledger import Ledger
from simulation.provider.predictions import Dialect, Prediction, Predictions
from simulation.provider.script import Script

REJECTING: Final = frozenset({"busy", "no_credit", "invalid", "500_before"})  # no prediction is created
HIDING: Final = frozenset({"lost", "500_after", "no_id"})  # the client does not receive the id


class Submissions:
    """Accepts submissions, or fails them as their scripts require, and records each."""

    def __init__(self, predictions: Predictions, ledger: Ledger, files: tuple[str, ...]) -> None:
        self.predictions: Final = predictions
        self.files: Final = files  # names in the folder of pictures
        self._ledger = ledger
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def accept(
        self,
        dialect: Dialect,
        model: str,
        input_: dict[str, Any],
        script: Script,
        build_response: Callable[[Prediction], Response],  # of a healthy provider; may wait for the prediction
        webhook: str | None = None,
        **fields: Any,  # further fields of the prediction
    ) -> Response:
        fault, prediction = self._select_fault(dialect.provider, model, input_, script), None
        if fault in REJECTING:
            response = dialect.build_error(fault, script)
        else:
            prediction = self.predictions.create(
                dialect, script, input_, model=model, webhook=None if fault == "not_echoed" else webhook,
                is_unseen=fault in HIDING and not dialect.events, **fields,
            )  # fmt: skip
            response = build_response(prediction)
        if fault == "lost":
            response = replace(response, is_dropped=True)
        elif fault == "500_after":
            response = dialect.build_error(fault, script)
        elif fault == "no_id":
            response = Response(response.status, {"status": "accepted"})
        self._ledger.add(
            "submission", provider=dialect.provider, model=model, webhook=webhook, fault=fault,
            prediction=prediction and prediction.id, http_status=None if response.is_dropped else response.status,
        )  # fmt: skip
        return replace(response, delay_s=script.submit_s)

    def _select_fault(self, provider: str, model: str, input_: dict[str, Any], script: Script) -> str:
        if script.submit == "ok" or not script.submit_times:
            return script.submit
        identity = json.dumps([provider, model, input_], sort_keys=True)
        with self._lock:
            self._counts[identity] += 1
            return script.submit if self._counts[identity] <= script.submit_times else "ok"
