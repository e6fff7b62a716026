"""Predictions: starting, processing and the end, by the clock, each step telling the webhooks."""

import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from simulation.provider import faults, inputs, webhooks
from simulation.provider.clock import Clock
from simulation.provider.ledger import Ledger
from simulation.provider.outputs import Outputs
from simulation.provider.prediction import Dialect, Prediction, Url, key_of

T = TypeVar("T")


class Predictions:
    """All predictions, oldest first."""

    def __init__(self, outputs: Outputs, sender: webhooks.Sender, clock: Clock, ledger: Ledger) -> None:
        self._outputs = outputs
        self._sender = sender
        self._clock = clock
        self._ledger = ledger
        self._all: dict[str, Prediction] = {}
        self._lock = threading.RLock()

    def create(
        self,
        dialect: Dialect,
        plan: faults.Plan,
        asked: dict[str, Any],
        *,
        model: str,
        version: str = "",
        deployment: str | None = None,
        webhook: str | None = None,
        events: Sequence[str] | None = None,
        unseen: bool = False,
    ) -> Prediction:
        """Start a prediction and return it."""
        with self._lock:
            prediction = Prediction(
                id=dialect.new_id(),
                number=len(self._all),
                dialect=dialect,
                plan=plan,
                model=model,
                version=version,
                deployment=deployment,
                input=asked,
                webhook=webhook,
                events=None if events is None else tuple(events),
                created_at=datetime.now(UTC),
                unseen=unseen,
            )
            self._all[prediction.id] = prediction
        self._record_made(prediction)
        if plan.status == "aborted":
            self._clock.after(plan.duration_s, self._end, prediction)
        else:
            self._clock.after(plan.duration_s * 0.2, self._start, prediction)
        return prediction

    def find(self, provider: str, prediction_id: str) -> Prediction | None:
        """Return a prediction of a provider, None when there is none."""
        with self._lock:
            found = self._all.get(prediction_id)
        return found if found and found.dialect.provider == provider else None

    def see(self, prediction: Prediction, look: Callable[[Prediction, Url], T]) -> T:
        """Return what `look` makes of a prediction while nothing changes it."""
        with self._lock:
            return look(prediction, self._url(prediction))

    def renew(self, prediction: Prediction) -> None:
        """Give fresh URLs to outputs whose fault is `gone_then_fresh`: the provider was asked."""
        with self._lock:
            for output in prediction.shown:
                self._outputs.renew(output)

    def cancel(self, prediction: Prediction) -> None:
        """Cancel a live prediction; one that has ended stays as it is."""
        self._end(prediction, "canceled")

    def newest_first(self, provider: str, after: datetime | None, before: datetime | None) -> list[Prediction]:
        """Return a provider's predictions created from `after` on and before `before`."""
        with self._lock:
            return [
                p
                for p in reversed(self._all.values())
                if p.dialect.provider == provider
                and (after is None or p.created_at >= after)
                and (before is None or p.created_at < before)
            ]

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
        path = prediction.dialect.paths.get(plan.shape, prediction.dialect.path)
        made = self._outputs.make(prediction.id, plan, path) if plan.shape not in ("text", "null") else []
        problem = inputs.fetch(prediction, self._ledger)
        with self._lock:
            if prediction.status != "processing":
                return
            prediction.logs += " 50%|#####     | 1/2\n"
            prediction.outputs, prediction.error = made, problem
            self._tell(prediction, "logs")
            if prediction.shown:
                self._tell(prediction, "output")
        if plan.status != "processing":
            self._clock.after(plan.duration_s * 0.4, self._end, prediction)

    def _end(self, prediction: Prediction, status: str | None = None) -> None:
        with self._lock:
            if prediction.completed_at is not None:
                return
            prediction.status = status or ("failed" if prediction.error else prediction.plan.status)
            prediction.completed_at = datetime.now(UTC)
            prediction.logs += "100%|##########| 2/2\n" if prediction.status == "succeeded" else ""
            self._record(prediction)
            self._tell(prediction, "completed")
        self._ledger.add("ended", prediction=prediction.id, status=prediction.status)
        prediction.ended.set()

    def _record_made(self, prediction: Prediction) -> None:
        prompt = prediction.input.get("prompt")
        self._ledger.add(
            "prediction",
            prediction=prediction.id,
            provider=prediction.dialect.provider,
            model=prediction.model,
            webhook=prediction.webhook,
            key=key_of(prediction.webhook),
            prompt=prompt[:200] if isinstance(prompt, str) else None,
            status=prediction.plan.status,
        )

    def _record(self, prediction: Prediction) -> None:
        inline = prediction.plan.shape == "data"
        fate = "unseen" if prediction.unseen else None
        for output in prediction.outputs:
            output.ends_at = datetime.now(UTC).timestamp() + prediction.plan.output_life_s
        for output in prediction.shown:
            self._outputs.record(output, inline=inline, fate="preview" if prediction.status != "succeeded" else fate)

    def _tell(self, prediction: Prediction, event: str) -> None:
        """Send the webhook of an event, the way the plan says."""
        plan = prediction.plan
        last, dialect = event == "completed", prediction.dialect
        held = event == "start" and plan.webhook == "out_of_order"
        if prediction.webhook is None or event not in dialect.events or plan.webhook == "missing" or held:
            return
        if event in (dialect.default_events if prediction.events is None else prediction.events):
            message = self._message(prediction, event)
            self._sender.send(message, plan.late_s if last and plan.webhook == "late" else 0.0)
            if last and plan.webhook == "double":
                self._sender.send(message, 0.05)
            if last and plan.webhook == "double_new_id":
                self._sender.send(self._message(prediction, event), 0.05)
        if last and plan.webhook == "out_of_order" and "start" in dialect.events:
            self._sender.send(self._message(prediction, "start", status="processing"), 0.3)

    def _message(self, prediction: Prediction, event: str, status: str | None = None) -> webhooks.Message:
        shown = prediction.dialect.told(prediction, self._url(prediction))
        if status is not None:
            shown |= {"status": status, "output": None, "completed_at": None, "metrics": {}}
        signatures = {
            "bad_signature_only": "wrong",
            "bad_signature_first": "wrong_first" if event == "completed" else "",
        }
        return webhooks.Message(
            provider=prediction.dialect.provider,
            webhook_id=webhooks.new_id(),
            prediction=prediction.id,
            event=event,
            status=status or prediction.status,
            url=prediction.webhook or "",
            body=json.dumps(shown).encode(),
            signature=signatures.get(prediction.plan.webhook) or "right",
            life_s=prediction.plan.webhook_life_s if event == "completed" else 0.0,
        )

    def _url(self, prediction: Prediction) -> Url:
        return self._outputs.data_uri if prediction.plan.shape == "data" else self._outputs.url
