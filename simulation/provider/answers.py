"""The JSON that Replicate's API and webhooks show of a prediction."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from simulation.provider.ledger import stamp
from simulation.provider.prediction import Dialect, Prediction, Url

EVENTS: Final = ("start", "output", "logs", "completed")
_ID_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"


class ReplicateDialect(Dialect):
    """Sends the prediction object itself at four kinds of events; two of them when nobody asks for others."""

    provider = "replicate"
    events = EVENTS
    default_events = ("output", "completed")
    paths: ClassVar[Mapping[str, str]] = {"string": "output", "nested": "output.images[{}].url"}
    path = "output[{}]"

    def new_id(self) -> str:
        """Return 26 letters and digits."""
        return "".join(_ID_LETTERS[byte % 32] for byte in secrets.token_bytes(26))

    def told(self, prediction: Prediction, url: Url) -> dict[str, Any]:
        """Return the prediction object."""
        return show(prediction, self.base_url, url)


def show(prediction: Prediction, base_url: str, url: Url) -> dict[str, Any]:
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
        "error": prediction.error or errors.get(prediction.status),
        "logs": None if removed else prediction.logs or None,
        "metrics": _metrics(prediction),
        "created_at": stamp(prediction.created_at),
        "started_at": _stamp(prediction.started_at),
        "completed_at": _stamp(prediction.completed_at),
        "data_removed": removed,
        "deadline": None,
        "deployment": prediction.deployment,
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


def _output(prediction: Prediction, url: Url) -> Any:
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
