"""Predictions: starting, processing and the end, by the clock, each step telling the webhooks."""

import json
import secrets
import threading
from datetime import UTC, datetime
from typing import Any, Final

from embedded.standin import answers, faults, webhooks
from embedded.standin.answers import Prediction
from embedded.standin.clock import Clock
from embedded.standin.ledger import Ledger
from embedded.standin.outputs import Outputs

EVENTS: Final = ("start", "output", "logs", "completed")
_DEFAULT_EVENTS: Final = ("output", "completed")
_ID_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"


class Predictions:
    """All predictions, oldest first."""

    def __init__(self, base_url: str, outputs: Outputs, sender: webhooks.Sender, clock: Clock, ledger: Ledger) -> None:
        self._base_url = base_url
        self._outputs = outputs
        self._sender = sender
        self._clock = clock
        self._ledger = ledger
        self._all: dict[str, Prediction] = {}
        self._lock = threading.RLock()

    def create(
        self, asked: dict[str, Any], *, version: str, model: str, webhook: str | None, events: list[str] | None
    ) -> dict[str, Any]:
        """
        Start a prediction and return its JSON.

        Raises:
            PlanError: `input["standin"]` is not in the vocabulary.
        """
        plan = faults.plan(asked.get("standin"), self._outputs.files)
        with self._lock:
            prediction = Prediction(
                id="".join(_ID_LETTERS[byte % 32] for byte in secrets.token_bytes(26)),
                number=len(self._all),
                plan=plan,
                version=version,
                model=model,
                input=asked,
                webhook=webhook,
                events=None if events is None else tuple(events),
                created_at=datetime.now(UTC),
            )
            self._all[prediction.id] = prediction
            shown = self._view(prediction)
        self._ledger.add("prediction", prediction=prediction.id, webhook=webhook, status=plan.status)
        if plan.status == "aborted":
            self._clock.after(plan.duration_s, self._end, prediction)
        else:
            self._clock.after(plan.duration_s * 0.2, self._start, prediction)
        return shown

    def get(self, prediction_id: str) -> dict[str, Any] | None:
        """Return a prediction's JSON; asking renews URLs whose fault is `gone_then_fresh`."""
        with self._lock:
            prediction = self._all.get(prediction_id)
            if prediction is None:
                return None
            for output in prediction.shown:
                self._outputs.renew(output)
            return self._view(prediction)

    def cancel(self, prediction_id: str) -> dict[str, Any] | None:
        """Cancel a live prediction and return its JSON; one that has ended is returned as it is."""
        with self._lock:
            prediction = self._all.get(prediction_id)
        if prediction is None:
            return None
        self._end(prediction, "canceled")
        return self.get(prediction_id)

    def newest_first(self, after: datetime | None, before: datetime | None) -> list[tuple[int, str]]:
        """Return (number, id) of those created from `after` on and before `before`."""
        with self._lock:
            return [
                (p.number, p.id)
                for p in reversed(self._all.values())
                if (after is None or p.created_at >= after) and (before is None or p.created_at < before)
            ]

    def show(self, prediction_id: str) -> dict[str, Any]:
        """Return a prediction's JSON and change nothing."""
        with self._lock:
            return self._view(self._all[prediction_id])

    def _start(self, prediction: Prediction) -> None:
        with self._lock:
            if prediction.status != "starting":
                return
            prediction.status, prediction.started_at = "processing", datetime.now(UTC)
            prediction.logs = "Using seed: 196619188014358660\n"
            self._tell(prediction, "start")
        self._clock.after(prediction.plan.duration_s * 0.4, self._progress, prediction)

    def _progress(self, prediction: Prediction) -> None:
        plan = prediction.plan
        made = self._outputs.make(prediction.id, plan) if plan.shape not in ("text", "null") else []
        with self._lock:
            if prediction.status != "processing":
                return
            prediction.logs += " 50%|#####     | 1/2\n"
            prediction.outputs = made
            self._tell(prediction, "logs")
            if prediction.shown:
                self._tell(prediction, "output")
        if plan.status != "processing":
            self._clock.after(plan.duration_s * 0.4, self._end, prediction)

    def _end(self, prediction: Prediction, status: str | None = None) -> None:
        with self._lock:
            if prediction.completed_at is not None:
                return
            prediction.status = status or prediction.plan.status
            prediction.completed_at = datetime.now(UTC)
            prediction.logs += "100%|##########| 2/2\n" if prediction.status == "succeeded" else ""
            self._record(prediction)
            self._tell(prediction, "completed")
        self._ledger.add("ended", prediction=prediction.id, status=prediction.status)

    def _record(self, prediction: Prediction) -> None:
        inline, preview = prediction.plan.shape == "data", prediction.status != "succeeded"
        for output in prediction.outputs:
            output.ends_at = datetime.now(UTC).timestamp() + prediction.plan.output_life_s
        for output in prediction.shown:
            self._outputs.record(output, inline=inline, preview=preview)

    def _tell(self, prediction: Prediction, event: str) -> None:
        """Send the webhook of an event, the way the plan says."""
        plan = prediction.plan
        last = event == "completed"
        held = event == "start" and plan.webhook == "out_of_order"
        if prediction.webhook is None or plan.webhook == "missing" or held:
            return
        if event in (_DEFAULT_EVENTS if prediction.events is None else prediction.events):
            message = self._message(prediction, event)
            self._sender.send(message, plan.late_s if last and plan.webhook == "late" else 0.0)
            if last and plan.webhook == "double":
                self._sender.send(message, 0.05)
            if last and plan.webhook == "double_new_id":
                self._sender.send(self._message(prediction, event), 0.05)
        if last and plan.webhook == "out_of_order":
            self._sender.send(self._message(prediction, "start", status="processing"), 0.3)

    def _message(self, prediction: Prediction, event: str, status: str | None = None) -> webhooks.Message:
        shown = self._view(prediction)
        if status is not None:
            shown |= {"status": status, "output": None, "completed_at": None, "metrics": {}}
        signatures = {
            "bad_signature_only": "wrong",
            "bad_signature_first": "wrong_first" if event == "completed" else "",
        }
        return webhooks.Message(
            webhook_id=webhooks.new_id(),
            prediction=prediction.id,
            event=event,
            status=shown["status"],
            url=prediction.webhook or "",
            body=json.dumps(shown).encode(),
            signature=signatures.get(prediction.plan.webhook) or "right",
            life_s=prediction.plan.webhook_life_s if event == "completed" else 0.0,
        )

    def _view(self, prediction: Prediction) -> dict[str, Any]:
        inline = prediction.plan.shape == "data"
        return answers.show(prediction, self._base_url, self._outputs.data_uri if inline else self._outputs.url)
