"""One prediction, and the JSON that the API and the webhooks show of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from embedded.standin import faults
from embedded.standin.ledger import stamp
from embedded.standin.outputs import Output


@dataclass(slots=True)
class Prediction:
    """One run; guarded by the lock of `Predictions`, which alone changes it."""

    id: str
    number: int
    plan: faults.Plan
    version: str
    model: str
    input: dict[str, Any]
    webhook: str | None
    events: tuple[str, ...] | None
    created_at: datetime
    status: str = "starting"
    started_at: datetime | None = None
    completed_at: datetime | None = None
    logs: str = ""
    outputs: list[Output] = field(default_factory=list)

    @property
    def shown(self) -> list[Output]:
        """Return the outputs its answer names now: all at a good end, half of a list before, none otherwise."""
        if self.status == "succeeded":
            return self.outputs[:1] if self.plan.shape == "string" else self.outputs
        previews = self.plan.shape == "list" and self.status in ("processing", "failed")
        return self.outputs[: len(self.outputs) // 2] if previews else []

    def removed(self, now: datetime) -> bool:
        """Return whether the life of its data is over."""
        return self.completed_at is not None and (now - self.completed_at).total_seconds() >= self.plan.output_life_s


def show(prediction: Prediction, base_url: str, url: Callable[[Output], str]) -> dict[str, Any]:
    """Return every field of Replicate's prediction object; `url` names an output (an address or a `data:` URI)."""
    removed = prediction.removed(datetime.now(UTC))
    own = f"{base_url}/v1/predictions/{prediction.id}"
    errors = {"failed": "CUDA out of memory", "aborted": "the deadline passed before the prediction started"}
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "status": prediction.status,
        "input": {} if removed else prediction.input,
        "output": None if removed else _output(prediction, url),
        "error": errors.get(prediction.status),
        "logs": None if removed else prediction.logs or None,
        "metrics": _metrics(prediction),
        "created_at": stamp(prediction.created_at),
        "started_at": _stamp(prediction.started_at),
        "completed_at": _stamp(prediction.completed_at),
        "data_removed": removed,
        "deadline": None,
        "deployment": None,
        "source": "api",
        "urls": {
            "get": own,
            "cancel": f"{own}/cancel",
            "stream": f"{own}/stream",
            "web": f"{base_url}/p/{prediction.id}",
        },
        "webhook": prediction.webhook,
        "webhook_events_filter": None if prediction.events is None else list(prediction.events),
    }


def _output(prediction: Prediction, url: Callable[[Output], str]) -> Any:
    done = prediction.status == "succeeded"
    if done and prediction.plan.shape == "text":
        return "A harbour at dawn. More on https://example.com/harbours today."
    named = [url(output) for output in prediction.shown]
    if not named:
        return [] if done and prediction.plan.shape in ("list", "data") else None
    match prediction.plan.shape:
        case "string":
            return named[0]
        case "nested":  # the seed is above 2**53, as some models give it
            return {"images": [{"url": one, "safe": True} for one in named], "seed": 196619188014358660}
        case _:
            return named


def _metrics(prediction: Prediction) -> dict[str, float]:
    if prediction.completed_at is None:
        return {}
    since = prediction.started_at or prediction.completed_at
    return {
        "predict_time": (prediction.completed_at - since).total_seconds(),
        "total_time": (prediction.completed_at - prediction.created_at).total_seconds(),
    }


def _stamp(at: datetime | None) -> str | None:
    return stamp(at) if at else None
