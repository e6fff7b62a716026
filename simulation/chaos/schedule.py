"""The random schedule of faults, which are injected one by one and may overlap."""

import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from simulation.chaos.faults import KINDS
from simulation.chaos.recovery import RecoveryMonitor
from simulation.chaos.targets import Fault, Targets

TICK_SECONDS: Final = 0.05
RESTART_SECONDS: Final = 1.0


class FaultSchedule:
    """Injects random faults by a seed. Call `step` in a loop from the main thread, because it starts processes."""

    def __init__(
        self,
        targets: Targets,
        recovery: RecoveryMonitor,
        weights: Mapping[str, int],
        *,
        seed: int,
        every_seconds: float,
    ) -> None:
        self._targets, self._recovery = targets, recovery
        self._rng = random.Random(seed)  # noqa: S311 (reproducible on purpose)
        self._every_seconds, self._weights = every_seconds, weights
        self._upcoming = self._shuffle_kinds()
        self._next_at = time.monotonic() + every_seconds
        self._active: list[tuple[float, Fault]] = []  # with the time to heal it, by the monotonic clock
        self._restart_at = 0.0
        self._leases_kept_until = 0.0  # sweeps release no lease in the first 30 s after PostgreSQL's start
        self.landed: list[Fault] = []
        self.kill_count = 0

    def _shuffle_kinds(self) -> list[str]:
        kinds = [kind for kind, weight in self._weights.items() for _ in range(weight)]
        self._rng.shuffle(kinds)
        return kinds

    def step(self, *, injects: bool) -> None:
        """Heal due faults, restart dead processes, check recoveries, and inject the next fault when it is due."""
        now = time.monotonic()
        self._heal(now)
        if now >= self._restart_at:
            self._targets.local.restart_dead()
            self._restart_at = now + RESTART_SECONDS
        if any(KINDS[fault.kind].disturbs for _, fault in self._active):
            self._recovery.mark_disturbed()
        if now < self._leases_kept_until:
            self._recovery.mark_disturbed(leases_only=True)
        self._recovery.check()
        if injects and now >= self._next_at:
            self._inject(self._upcoming.pop())
            self._upcoming = self._upcoming or self._shuffle_kinds()
            self._next_at = now + self._rng.uniform(0.3, 1.7) * self._every_seconds
        time.sleep(TICK_SECONDS)

    @property
    def is_healed(self) -> bool:
        return not self._active

    def _inject(self, kind: str) -> None:
        if KINDS[kind].disturbs:
            self._recovery.mark_disturbed()
        self._recovery.read_state()
        fault = KINDS[kind].inject(self._targets, self._rng)
        if fault is None:
            return
        fault.kind, fault.began_at = kind, time.time()
        self.kill_count += fault.is_kill
        if fault.seconds:
            self._active.append((time.monotonic() + fault.seconds, fault))
        else:
            self._end(fault)
        if KINDS[kind].probe is None:
            self._recovery.measure_leases(kind, fault.victim)

    def _heal(self, now: float) -> None:
        for heal_at, fault in [entry for entry in self._active if entry[0] <= now]:
            if fault.heal is not None:
                fault.heal()
            if fault.kind in ("PostgreSQL killed", "primary lost"):
                self._leases_kept_until = now + 32.0
            self._active.remove((heal_at, fault))
            self._end(fault)

    def _end(self, fault: Fault) -> None:
        fault.ended_at = time.time()
        self.landed.append(fault)
        if (probe := KINDS[fault.kind].probe) is not None:
            self._recovery.measure_probe(fault.kind, probe, fault.victim)

    def count_by_kind(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.landed)
