"""
What goes wrong when something is ordered, at every provider alike; asked for as `"submit"` in `input["standin"]`.

The first `submit_times` orders with the same model and input suffer the fault, later ones are taken; 0: every one.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from simulation.provider.exchange import Answer
from simulation.provider.faults import Plan
from simulation.provider.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Order:
    """One order as it came: to which provider, for which model, with which input and webhook address."""

    provider: str
    model: str
    asked: Mapping[str, Any]
    webhook: str | None = None


class Submissions:
    """Takes orders, or fails them as their plans say, and writes each into the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(
        self,
        order: Order,
        plan: Plan,
        refusal: Callable[[str, Plan], Answer],
        make: Callable[[str], tuple[str, Answer]],
    ) -> Answer:
        """
        Return the answer to an order.

        Args:
            refusal: how the provider words a fault.
            make: makes what is ordered, told the fault; returns its id and the answer of a healthy provider.
        """
        fault = self._fault(order, plan)
        made: str | None = None
        if fault in REFUSED:
            answer = refusal(fault, plan)
        else:
            made, answer = make(fault)
            answer = _spoiled(fault, answer, lambda: refusal(fault, plan))
        self._ledger.add(
            "submission",
            provider=order.provider,
            model=order.model,
            webhook=order.webhook,
            fault=fault,
            prediction=made,
            answer=None if answer.cut else answer.status,
        )
        return replace(answer, after_s=plan.submit_s)

    def _fault(self, order: Order, plan: Plan) -> str:
        if plan.submit == "ok" or not plan.submit_times:
            return plan.submit
        same = json.dumps([order.provider, order.model, order.asked], sort_keys=True)
        with self._lock:
            self._seen[same] += 1
            return plan.submit if self._seen[same] <= plan.submit_times else "ok"


REFUSED: Final = frozenset({"busy", "no_credit", "invalid", "500_before"})  # nothing is made


def _spoiled(fault: str, answer: Answer, failure: Callable[[], Answer]) -> Answer:
    """Return what the client gets to see of a healthy answer."""
    match fault:
        case "lost":
            return replace(answer, cut=True)
        case "500_after":
            return failure()
        case "no_id":
            return Answer(answer.status, {"status": "accepted"})
        case _:
            return answer
