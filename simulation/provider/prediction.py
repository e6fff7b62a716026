"""A prediction, and the dialect of its provider."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from simulation.provider.outputs import Output
from simulation.provider.script import Script

UrlBuilder = Callable[[Output], str]  # returns an http: URL or a `data:` URI


@dataclass(slots=True)
class Prediction:
    """
    One prediction; only `Predictions` changes it, under its lock.

    Args:
        number: in order of creation.
        is_unseen: no client receives its id, and no API returns it.
    """

    id: str
    number: int
    dialect: "Dialect"
    script: Script
    model: str
    input: dict[str, Any]
    webhook: str | None
    created_at: datetime
    version: str = ""
    deployment: str | None = None
    events: tuple[str, ...] | None = None
    is_unseen: bool = False
    status: str = "starting"
    started_at: datetime | None = None
    completed_at: datetime | None = None
    logs: str = ""
    error: str | None = None
    outputs: list[Output] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def visible_outputs(self) -> list[Output]:
        """Return the outputs in its response now: all after success, half of a list before, none otherwise."""
        if self.status == "succeeded":
            return self.outputs[:1] if self.script.shape == "string" else self.outputs
        has_previews = self.script.shape == "list" and self.status in ("processing", "failed")
        return self.outputs[: len(self.outputs) // 2] if has_previews else []

    def is_removed(self, now: datetime) -> bool:
        """Return True if the provider has deleted its data."""
        return self.completed_at is not None and (now - self.completed_at).total_seconds() >= self.script.output_life_s


@dataclass(frozen=True, slots=True)
class Dialect:
    """
    Ids and JSON of one provider's predictions.

    Args:
        new_id: returns a random id.
        build_body: returns the body of a webhook, or of the response where the provider sends none.
        path, paths: location of an output in the body, also by the script's shape; {} stands for its index.
        events: the kinds of events that it can send webhooks for.
        default_events: those it sends without a filter.
    """

    provider: str
    new_id: Callable[[], str]
    build_body: Callable[[Prediction, UrlBuilder], dict[str, Any]]
    path: str
    paths: Mapping[str, str] = field(default_factory=dict)
    events: tuple[str, ...] = ("completed",)
    default_events: tuple[str, ...] = ("completed",)
