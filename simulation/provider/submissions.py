"""
Submission faults, the same at every provider; selected by `"submit"` in the script.

The first `submit_times` submissions with the same model and input get the fault, later ones succeed; 0: every one.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from simulation.provider.http_types import Response
from simulation.provider.ledger import Ledger
from simulation.provider.predictions import Predictions
from simulation.provider.script import Script

REFUSED: Final = frozenset({"busy", "no_credit", "invalid", "500_before"})  # no prediction is created


@dataclass(frozen=True, slots=True)
class Submission:
    provider: str
    model: str
    input: Mapping[str, Any]
    webhook: str | None = None


class Submissions:
    """Accepts submissions, or fails them as their scripts require, and records each."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def accept(
        self,
        submission: Submission,
        script: Script,
        build_error: Callable[[str, Script], Response],
        create: Callable[[str], tuple[str, Response]],
    ) -> Response:
        """
        Return the response to a submission.

        Args:
            build_error: returns the provider's error for a fault.
            create: creates the prediction under a fault; returns its id and the response of a healthy provider.
        """
        fault = self._select_fault(submission, script)
        prediction_id: str | None = None
        if fault in REFUSED:
            response = build_error(fault, script)
        else:
            prediction_id, response = create(fault)
            response = _damage(fault, response, lambda: build_error(fault, script))
        self._ledger.add(
            "submission", provider=submission.provider, model=submission.model, webhook=submission.webhook, fault=fault,
            prediction=prediction_id, http_status=None if response.is_dropped else response.status,
        )  # fmt: skip
        return replace(response, delay_s=script.submit_s)

    def _select_fault(self, submission: Submission, script: Script) -> str:
        if script.submit == "ok" or not script.submit_times:
            return script.submit
        identity = json.dumps([submission.provider, submission.model, submission.input], sort_keys=True)
        with self._lock:
            self._counts[identity] += 1
            return script.submit if self._counts[identity] <= script.submit_times else "ok"


@dataclass(frozen=True, slots=True)
class Backend:
    """What the simulated providers share. `files`: names in the folder of pictures."""

    predictions: Predictions
    submissions: Submissions
    files: tuple[str, ...]


def _damage(fault: str, response: Response, build_error: Callable[[], Response]) -> Response:
    """Return what the client receives instead of a healthy response."""
    match fault:
        case "lost":
            return replace(response, is_dropped=True)
        case "500_after":
            return build_error()
        case "no_id":
            return Response(response.status, {"status": "accepted"})
        case _:
            return response
