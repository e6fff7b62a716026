"""A prediction, and the interface of a provider's dialect."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from simulation.provider.outputs import Output
from simulation.provider.script import Script

UrlBuilder = Callable[[Output], str]  # returns an http: URL or a `data:` URI


class Dialect(ABC):
    """
    Ids and JSON of one provider's predictions.

    Attributes:
        events: the kinds of events that it can send webhooks for.
        default_events: those it sends without a filter.
        paths, path: location of an output in the response, by the script's shape; {} stands for its index.
    """

    provider: ClassVar[str]
    events: ClassVar[tuple[str, ...]] = ("completed",)
    default_events: ClassVar[tuple[str, ...]] = ("completed",)
    paths: ClassVar[Mapping[str, str]] = {}
    path: ClassVar[str]

    def __init__(self, base_url: str) -> None:
        self.base_url: Final = base_url

    @abstractmethod
    def new_prediction_id(self) -> str:
        """Return a random id in the provider's format."""

    @abstractmethod
    def build_body(self, prediction: "Prediction", url: UrlBuilder) -> dict[str, Any]:
        """Return the body of a webhook, or of the response where the provider sends none."""


@dataclass(slots=True)
class Prediction:
    """One prediction; only `Predictions` changes it, under its lock."""

    id: str
    number: int
    dialect: Dialect
    script: Script
    model: str
    version: str
    deployment: str | None
    input: dict[str, Any]
    webhook: str | None
    events: tuple[str, ...] | None
    created_at: datetime
    status: str = "starting"
    started_at: datetime | None = None
    completed_at: datetime | None = None
    logs: str = ""
    error: str | None = None
    outputs: list[Output] = field(default_factory=list)
    is_unseen: bool = False  # no client receives its id, and no API returns it
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


def webhook_key(webhook: str | None) -> str | None:
    """Return the `key` in the query of a webhook URL."""
    return parse_qs(urlsplit(webhook or "").query).get("key", [None])[0]
