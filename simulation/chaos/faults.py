"""The faults of a drill: each breaks one component, identifies it, and is healed after its duration."""

import contextlib
import os
import random
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from db.connection import connect
from embedded.proxy import Proxy
from simulation.provider.client import Standin
from simulation.stack import LocalDeployment

FILE_LIMIT_BYTES: Final = 4096  # "disk full": a worker cannot write beyond this size of a file


@dataclass(frozen=True, slots=True)
class Targets:
    """The components that a drill can break. `proxies`: by the name of the server."""

    local: LocalDeployment
    standin: Standin
    proxies: Mapping[str, Proxy]
    lease_seconds: float

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
class ActiveFault:
    """A fault that was injected."""

    heal: Callable[[], None] | None = None  # to be called after `seconds`
    seconds: float = 0.0
    victim: str = ""  # node name of the worker, for faults that interrupt leases
    is_kill: bool = False


Injector = Callable[[Targets, random.Random], ActiveFault | None]  # None: there is nothing to break now


def kill_pool_child(targets: Targets, rng: random.Random) -> ActiveFault | None:
    name = targets.draw_worker(rng, "keep", "quick")
    children = targets.child_pids(name) if name else []
    if not name or not children:
        return None
    os.kill(rng.choice(children), signal.SIGKILL)
    return ActiveFault(victim=name, is_kill=True)


def kill_worker(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Kill a worker with its process group; the supervisor restarts it."""
    name = targets.draw_worker(rng, "keep", "quick")
    if name is None:
        return None
    targets.local.processes[name].kill()
    return ActiveFault(victim=name, is_kill=True)


def kill_process(name: str) -> Injector:
    def inject(targets: Targets, _rng: random.Random) -> ActiveFault | None:
        process = targets.local.processes.get(name)
        if process is None or not process.is_running:  # by another fault
            return None
        process.kill()
        return ActiveFault(is_kill=True)

    return inject


def kill_server(name: str) -> Injector:
    """Kill a server and restart it after up to 4 s."""

    def inject(targets: Targets, rng: random.Random) -> ActiveFault | None:
        server = next(server for server in targets.local.stack.servers if server.name == name)
        if not server.is_running:
            return None
        server.kill()
        return ActiveFault(server.launch, seconds=rng.uniform(0.2, 4), is_kill=True)

    return inject


def stop_all_beats(targets: Targets, rng: random.Random) -> ActiveFault | None:
    processes = targets.local.processes
    stopped = {name: processes.pop(name) for name in list(processes) if name.startswith("beat")}
    for process in stopped.values():
        process.kill()

    def heal() -> None:
        for process in stopped.values():
            process.launch()
        processes.update(stopped)

    return ActiveFault(heal, seconds=rng.uniform(3, 8), is_kill=True)


def freeze_worker(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Stop a worker and its children with SIGSTOP for twice its lease, so that it resumes fenced."""
    name = targets.draw_worker(rng, "keep")
    if name is None:
        return None
    pid = targets.local.processes[name].pid or 0
    _signal_group(pid, signal.SIGSTOP)
    seconds = 2 * targets.lease_seconds
    return ActiveFault(lambda: _signal_group(pid, signal.SIGCONT), seconds=seconds, victim=name)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def empty_broker(targets: Targets, _rng: random.Random) -> ActiveFault | None:
    """Delete every message."""
    try:
        redis.Redis.from_url(targets.local.stack.valkey.url(), socket_timeout=2).flushall()
    except redis.RedisError:
        return None
    return ActiveFault()


def cut_connections(server: str) -> Injector:
    def inject(targets: Targets, _rng: random.Random) -> ActiveFault | None:
        targets.proxies[server].reset_connections()
        return ActiveFault()

    return inject


def stall_connections(server: str) -> Injector:
    def inject(targets: Targets, rng: random.Random) -> ActiveFault | None:
        proxy = targets.proxies[server]
        proxy.stall()
        return ActiveFault(proxy.resume, seconds=rng.uniform(2, 12))

    return inject


def fill_disk(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Limit the size of files that the children of a worker can write."""
    name = targets.draw_worker(rng, "keep")
    children = targets.child_pids(name) if name else []
    if not name or not children:
        return None

    def limit(max_bytes: int) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(child, resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))

    limit(FILE_LIMIT_BYTES)
    return ActiveFault(lambda: limit(resource.RLIM_INFINITY), seconds=rng.uniform(2, 6), victim=name)


def jump_clock(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Move the database's clock by an hour, ahead or back; also for open connections."""

    def shift(hours: int) -> bool:
        try:
            conn = connect(targets.local.stack.postgres.url(), name="moorage-drill")
            conn.execute(f"ALTER SYSTEM SET moorage.clock_shift = '{hours} hours'".encode())
            conn.execute("SELECT pg_reload_conf()")
            conn.close()
        except Exception:  # noqa: BLE001 (other faults break PostgreSQL)
            return False
        return True

    def heal() -> None:
        while not shift(0):
            targets.local.stack.restart_dead()

    return ActiveFault(heal, seconds=rng.uniform(1, 3)) if shift(rng.choice((1, -1))) else None


def begin_provider_outage(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Make the provider's APIs and files return 503."""
    seconds = rng.uniform(2, 6)
    targets.standin.begin_outage(seconds, outputs=True)
    return ActiveFault(seconds=seconds)


# Injector and relative frequency of each kind.
KINDS: Final[dict[str, tuple[Injector, int]]] = {
    "pool child killed": (kill_pool_child, 12),
    "worker killed": (kill_worker, 6),
    "receiver killed": (kill_process("receiver"), 5),
    "beat killed": (kill_process("beat1"), 3),
    "no beat": (stop_all_beats, 2),
    "PostgreSQL killed": (kill_server("postgres"), 4),
    "broker killed": (kill_server("valkey"), 4),
    "storage killed": (kill_server("seaweedfs"), 3),
    "worker frozen": (freeze_worker, 2),
    "broker emptied": (empty_broker, 4),
    "broker cut": (cut_connections("valkey"), 2),
    "broker stalled": (stall_connections("valkey"), 2),
    "PostgreSQL cut": (cut_connections("postgres"), 2),
    "PostgreSQL stalled": (stall_connections("postgres"), 2),
    "storage cut": (cut_connections("seaweedfs"), 2),
    "storage stalled": (stall_connections("seaweedfs"), 2),
    "disk full": (fill_disk, 2),
    "clock jump": (jump_clock, 1),
    "provider outage": (begin_provider_outage, 2),
}
