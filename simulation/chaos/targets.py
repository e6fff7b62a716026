"""What a drill can break, and a fault that it has injected."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedded.process import Process
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

    def draw_worker(self, rng: random.Random, *prefixes: str) -> Process | None:
        """Return a running worker, None without one."""
        workers = [x for x in self.local.processes.values() if x.name.startswith(prefixes) and x.is_running]
        return rng.choice(workers) if workers else None


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
