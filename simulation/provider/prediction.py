"""One prediction, and what a provider's dialect is to the rest of the stand-in."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from simulation.provider import faults
from simulation.provider.outputs import Output

Url = Callable[[Output], str]  # the address of an output, or its `data:` URI


class Dialect(ABC):
    """
    How one provider names and tells its predictions.

    Attributes:
        events: the kinds of events that it can send webhooks for.
        default_events: those it sends when nobody asks for others.
        paths, path: where an output stands in the answer, by the plan's shape, {} for its index.
    """

    provider: ClassVar[str]
    events: ClassVar[tuple[str, ...]] = ("completed",)
    default_events: ClassVar[tuple[str, ...]] = ("completed",)
    paths: ClassVar[Mapping[str, str]] = {}
    path: ClassVar[str]

    def __init__(self, base_url: str) -> None:
        self.base_url: Final = base_url

    @abstractmethod
    def new_id(self) -> str:
        """Return a fresh id of a prediction."""

    @abstractmethod
    def told(self, prediction: "Prediction", url: Url) -> dict[str, Any]:
        """Return the body of a webhook."""


@dataclass(slots=True)
class Prediction:
    """One run; guarded by the lock of `Predictions`, which alone changes it."""

    id: str
    number: int
    dialect: Dialect
    plan: faults.Plan
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
    unseen: bool = False  # its answer is told to nobody, and there is no other way to it
    ended: threading.Event = field(default_factory=threading.Event)

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


def key_of(webhook: str | None) -> str | None:
    """Return the `key` in the query of a webhook address."""
    return parse_qs(urlsplit(webhook or "").query).get("key", [None])[0]
