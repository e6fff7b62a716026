"""What a drill orders: jobs that moorage submits itself, along chains of providers that lose, refuse and fail."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SHARE: Final = 0.15  # of the jobs of a drill
WAITED_SECONDS: Final = 600.0  # for an entry that is to bring files: longer than faults hold it up
PATIENCE_SECONDS: Final = 4.0  # for one that takes SLOW_SECONDS
SLOW_SECONDS: Final = 12.0
LIFE_SECONDS: Final = 6 * 3600.0  # of a job and of its files: longer than a jump of the clock
OUTPUTS: Final = 2

_MODELS: Final = {"replicate": "standin/pictures", "fal": "standin/pictures", "openai": "gpt-image-1"}

# How often each comes, of 100 entries. What is wrong with the order itself:
SUBMITS: Final = {"lost": 12, "500_after": 8, "no_id": 8, "busy": 12}
# Why an entry brings nothing:
FAILS: Final = {"failed": 9, "invalid": 6, "no_credit": 4, "dead files": 6, "slow": 9}
WEBHOOKS: Final = {"late": 8, "double": 6, "double_new_id": 6, "missing": 10, "out_of_order": 4}
FILES: Final = {"500_twice": 5, "truncated_once": 5, "slow": 5}

_SCRIPTS: Final[dict[str, dict[str, Any]]] = {
    "failed": {"status": "failed"},
    "invalid": {"submit": "invalid"},
    "no_credit": {"submit": "no_credit"},
    "dead files": {"faults": {"0": "404_always", "1": "web_page"}},
    "slow": {"duration_s": SLOW_SECONDS},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an order's chain; its prompt, which no other has, tells in the stand-in's ledger what it made."""

    provider: str
    prompt: str
    seconds: float
    script: Mapping[str, Any]
    fails: str | None = None  # why it brings nothing, in time

    @property
    def is_troubled(self) -> bool:
        """Return whether the order itself goes wrong, so that it is sent or looked up again without a fault of ours."""
        return bool(self.script["submit"] != "ok")

    @property
    def sends_webhook(self) -> bool:
        """Return whether the end of a run is told by webhook."""
        return self.provider != "openai" and bool(self.script["webhook"] != "missing")

    def asked(self) -> dict[str, Any]:
        """Return it as POST /v1/jobs takes it."""
        given = {"prompt": self.prompt, "standin": self.script}
        return {"provider": self.provider, "model": _MODELS[self.provider], "input": given, "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Order:
    """One job that is ordered."""

    name: str  # its Idempotency-Key too
    chain: tuple[Entry, ...]
    placeholder: bool
    project: str
    scene: int
    is_repeated: bool  # sent again after it was answered

    def asked(self) -> dict[str, Any]:
        """Return the body of POST /v1/jobs."""
        return {
            "owner": "drill",
            "prompt": self.name,
            "chain": [entry.asked() for entry in self.chain],
            "placeholder": self.placeholder,
            "project_id": self.project,
            "scene": self.scene,
            "deadline_seconds": LIFE_SECONDS,
        }


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order that was acknowledged, with the job of each answer; `at`: when it was first sent, in Unix seconds."""

    order: Order
    at: float
    job_ids: tuple[str, ...]


def draw(rng: random.Random, number: int, project: str, scene: int) -> Order:
    """Return the order of a number, as chance has it: one entry or two, with a placeholder or without."""
    name = f"order {number}"
    chain = tuple(_entry(rng, f"{name}, entry {n}", number) for n in range(rng.choice((1, 2))))
    return Order(name, chain, rng.random() < 0.5, project, scene, rng.random() < 0.3)


def _entry(rng: random.Random, prompt: str, number: int) -> Entry:
    provider, fails, submit = rng.choice(tuple(_MODELS)), _one_of(rng, FAILS), _one_of(rng, SUBMITS)
    webhook, file = _one_of(rng, WEBHOOKS), _one_of(rng, FILES)
    if provider == "openai" and fails == "dead files":  # its files come in the answer
        fails = "failed"
    if fails in ("invalid", "no_credit"):  # every time
        submit = None
    script: dict[str, Any] = {
        "duration_s": round(rng.uniform(0.2, 2.0), 2),
        "outputs": OUTPUTS,
        "formats": ["png", "jpeg"],
        "seed": number % 50,
        "submit": submit or "ok",
        "submit_times": rng.choice((1, 2)) if submit == "busy" else 0,
        "webhook": (webhook if provider != "openai" and fails != "slow" else None) or "ok",
        "webhook_life_s": 600.0,
        "output_life_s": LIFE_SECONDS,
        "faults": {str(rng.randrange(OUTPUTS)): file} if file and provider != "openai" else {},
        **_SCRIPTS.get(fails or "", {}),
    }
    return Entry(provider, prompt, PATIENCE_SECONDS if fails == "slow" else WAITED_SECONDS, script, fails)


def _one_of(rng: random.Random, chances: dict[str, int]) -> str | None:
    number = rng.randrange(100)
    for name, chance in chances.items():
        if number < chance:
            return name
        number -= chance
    return None
