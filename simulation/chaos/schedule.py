"""The seeded schedule of faults, carried out one after another (and over one another) while work runs."""

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from simulation.chaos.faults import KINDS, Hit, World
from simulation.chaos.recovery import Recovery
from simulation.chaos.recovery_probes import LEASES

TICK_SECONDS: Final = 0.05
RESTART_SECONDS: Final = 1.0
# While these last, nothing can go on: a recovery that they fall into is told apart.
DISTURBING: Final = frozenset(
    {
        "PostgreSQL killed",
        "PostgreSQL cut",
        "PostgreSQL stalled",
        "broker killed",
        "broker stalled",
        "storage killed",
        "storage stalled",
        "no beat",
        "clock jump",
        "provider outage",
    }
)


@dataclass(frozen=True, slots=True)
class Landed:
    """A fault that happened, with when it began and ended (Unix seconds)."""

    kind: str
    began_at: float
    ended_at: float
    victim: str


class Chaos:
    """Breaks things at random by a seed; `step` is called in a loop from the main thread, which starts processes."""

    def __init__(self, world: World, recovery: Recovery, *, seed: int, every_seconds: float) -> None:
        self._world, self._recovery = world, recovery
        self._random = random.Random(seed)  # noqa: S311 (repeatable on purpose)
        self._every = every_seconds
        self._kinds = self._deck()
        self._next_at = time.monotonic() + every_seconds
        self._healing: list[tuple[float, str, Hit, float]] = []
        self._restart_at = 0.0
        self._leases_kept_until = 0.0  # sweeps free no lease in the first 30 s after PostgreSQL started
        self.landed: list[Landed] = []
        self.kills = 0

    def _deck(self) -> list[str]:
        deck = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
        self._random.shuffle(deck)
        return deck

    def step(self, *, break_things: bool) -> None:
        """Heal what is due, restart what died, look at recoveries, and break the next thing if it is time."""
        now = time.monotonic()
        self._heal(now)
        if now >= self._restart_at:
            self._world.local.restart_dead()
            self._restart_at = now + RESTART_SECONDS
        if any(kind in DISTURBING for _, kind, _, _ in self._healing):
            self._recovery.disturb()
        if now < self._leases_kept_until:
            self._recovery.disturb(leases_only=True)
        self._recovery.look()
        if break_things and now >= self._next_at:
            self._break(self._kinds.pop())
            self._kinds = self._kinds or self._deck()
            self._next_at = now + self._random.uniform(0.3, 1.7) * self._every
        time.sleep(TICK_SECONDS)

    @property
    def is_healed(self) -> bool:
        """Return whether every fault has ended."""
        return not self._healing

    def _break(self, kind: str) -> None:
        if kind in DISTURBING:
            self._recovery.disturb()
        held = {name: self._recovery.held_by(name) for name in self._world.local.processes if "beat" not in name}
        self._recovery.mark()
        hit = KINDS[kind][0](self._world, self._random)
        if hit is None:
            return
        self.kills += hit.is_kill
        if hit.seconds:
            self._healing.append((time.monotonic() + hit.seconds, kind, hit, time.time()))
        else:
            self._end(kind, hit, time.time())
        if kind == "pool child killed":
            self._recovery.watch_released(kind, hit.victim)
        elif kind in LEASES:
            self._recovery.watch_held(kind, held.get(hit.victim, []))

    def _heal(self, now: float) -> None:
        for entry in [e for e in self._healing if e[0] <= now]:
            _, kind, hit, began_at = entry
            hit.heal()
            if kind == "PostgreSQL killed":
                self._leases_kept_until = now + 32.0
            self._healing.remove(entry)
            self._end(kind, hit, began_at)

    def _end(self, kind: str, hit: Hit, began_at: float) -> None:
        self.landed.append(Landed(kind, began_at, time.time(), hit.victim))
        if kind not in LEASES:
            self._recovery.watch_need(kind, hit.victim)

    def counts(self) -> Counter[str]:
        """Return how many faults of each kind landed."""
        return Counter(landed.kind for landed in self.landed)
