"""What the demo orders: jobs along chains of providers, from files, for scenes, and what it cancels and retries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

FILM: Final = "film"
SCENES: Final = ("harbour", "pier", "quay")

Source = Literal["nothing", "an upload", "a kept picture"]
Steer = Literal["cancel", "retry"]
_MODELS: Final = {"replicate": "standin/pictures", "fal": "standin/pictures", "openai": "gpt-image-1"}


@dataclass(frozen=True, slots=True)
class Order:
    """
    One job: what is ordered, and how it must end.

    Args:
        tries: the providers in its history, in their order.
        publishes: how many files readers see in the end.
        stands_in: whether a placeholder is made on the way.
        source: what every entry's `image` is.
        steer: what the application asks for, once the job is at work or has failed.
    """

    name: str
    chain: tuple[dict[str, Any], ...]
    tries: tuple[str, ...]
    publishes: int = 1
    state: str = "succeeded"
    stands_in: bool = False
    source: Source = "nothing"
    steer: Steer | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def first() -> list[Order]:
    """Return the orders of the beginning."""
    return [*_chains(), *_submissions(), *_steered(), _from_upload()]


def then() -> list[Order]:
    """Return the order that takes the picture of the one before it."""
    video = {"provider": "replicate", "model": "auto", "input": {"prompt": "the boat leaves"}}
    return [
        Order("a video from that picture", (video,), ("replicate",), source="a kept picture", fields={"kind": "video"})
    ]


def _entry(provider: str, seconds: float = 60.0, **script: Any) -> dict[str, Any]:
    asked = {"prompt": "a boat at its mooring", "standin": {"duration_s": 0.5, "formats": ["png"], **script}}
    return {"provider": provider, "model": _MODELS[provider], "input": asked, "seconds": seconds}


def _chains() -> list[Order]:
    too_slow, fails = _entry("replicate", 2.0, duration_s=14.0, seed=2), _entry("fal", status="failed")
    never = _entry("replicate", 1.0, status="processing")
    refuses = _entry("openai", submit="no_credit")
    three, two = ("replicate", "fal", "openai"), ("fal", "openai", "placeholder")
    return [
        Order("times out, fails, works", (never, fails, _entry("openai", outputs=2)), three, 2, fields=_scene(0)),
        Order("all fail: a placeholder", (fails, refuses), two, 1, "partial", stands_in=True, fields=_stand_in(1)),
        Order(
            "a placeholder until it comes late",
            (too_slow, fails),
            ("replicate", "fal", "placeholder"),
            stands_in=True,
            fields=_stand_in(2),
        ),
        Order("all fail, and nothing stands in", (fails, refuses), two[:2], 0, "failed"),
    ]


def _scene(number: int) -> dict[str, Any]:
    return {"project_id": FILM, "scene": SCENES[number]}


def _stand_in(number: int) -> dict[str, Any]:
    return {"placeholder": True, **_scene(number)}


def _submissions() -> list[Order]:
    lost = _entry("replicate", submit="lost")
    busy = _entry("fal", submit="busy", submit_times=2)
    return [
        Order("its answer is lost, its webhook tells", (lost,), ("replicate",)),
        Order("the provider is busy twice", (busy,), ("fal",)),
    ]


def _steered() -> list[Order]:
    long = _entry("replicate", 120.0, duration_s=100.0)
    no_credit = _entry("fal", submit="no_credit", submit_times=1)
    return [
        Order("cancelled while it is made", (long,), ("replicate",), 0, "cancelled", steer="cancel"),
        Order("fails, and works when retried", (no_credit,), ("fal", "fal"), steer="retry"),
    ]


def _from_upload() -> Order:
    return Order("from an upload", (_entry("replicate", outputs=2),), ("replicate",), 2, source="an upload")
