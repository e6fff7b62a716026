"""What a drill can break, and a fault that it has injected."""

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedded.proxy import Proxy
from embedded.standby import Standby
from simulation.provider.client import Standin
from worker.local_deployment import LocalDeployment


@dataclass(frozen=True, slots=True)
class Targets:
    """
    The components that a drill can break.

    Args:
        proxies: by the name of the server.
        database_url: of PostgreSQL, past the proxies.
    """

    local: LocalDeployment
    standin: Standin
    proxies: Mapping[str, Proxy]
    lease_seconds: float
    database_url: str
    standby: Standby | None = None
    small_disk: Path | None = None

    def draw_worker(self, rng: random.Random, *prefixes: str) -> str | None:
        """Return the name of a running worker, None without one."""
        names = [n for n, p in self.local.processes.items() if n.startswith(prefixes) and p.is_running]
        return rng.choice(names) if names else None

    def child_pids(self, worker: str) -> list[int]:
        children: list[int] = []
        for task in Path(f"/proc/{self.local.processes[worker].pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children += [int(child) for child in task.read_text().split()]
        return children


@dataclass(slots=True)
class Fault:
    """A fault that was injected; the schedule adds its kind and its times."""

    heal: Callable[[], None] | None = None  # to be called after `seconds`
    seconds: float = 0.0
    victim: str = ""  # node name of the worker, for faults that interrupt leases; empty: none, or all
    is_kill: bool = False
    kind: str = ""
    began_at: float = 0.0  # Unix seconds
    ended_at: float = 0.0


Injector = Callable[[Targets, random.Random], Fault | None]  # None: there is nothing to break now
