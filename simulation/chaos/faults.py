"""The faults of a drill: each breaks one thing, says what it hit, and heals after its time."""

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
from embedded.server import Server
from simulation.provider.client import Standin
from simulation.stack import Local

FILE_LIMIT_BYTES: Final = 4096  # "disk full": no file of a worker's may grow beyond this


@dataclass(frozen=True, slots=True)
class World:
    """What a drill can break."""

    local: Local
    standin: Standin
    proxies: Mapping[str, Proxy]  # postgres, valkey, seaweedfs
    lease_seconds: float


@dataclass(slots=True)
class Hit:
    """A fault that landed: what ends it, how long it lasts, and who was hit."""

    heal: Callable[[], None]
    seconds: float = 0.0
    victim: str = ""  # the worker's node name, for faults that take its leases
    child: int = 0  # the pool child's process id
    is_kill: bool = False


Inject = Callable[[World, random.Random], Hit | None]


def _nothing() -> None:
    pass


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def _workers(world: World) -> list[str]:
    return [n for n, p in world.local.processes.items() if n.startswith(("keep", "quick")) and p.is_running]


def kill_child(world: World, rng: random.Random) -> Hit | None:
    """Kill a pool child of a worker."""
    name = rng.choice(_workers(world) or ["quick"])
    children = children_of(world.local.processes[name].pid or 0)
    if not children:
        return None
    child = rng.choice(children)
    os.kill(child, signal.SIGKILL)
    return Hit(_nothing, victim=name, child=child, is_kill=True)


def kill_worker(world: World, rng: random.Random) -> Hit | None:
    """Kill a worker with its whole process group; the supervisor starts another."""
    names = _workers(world)
    if not names:
        return None
    name = rng.choice(names)
    world.local.processes[name].kill()
    return Hit(_nothing, victim=name, is_kill=True)


def kill_receiver(world: World, _rng: random.Random) -> Hit | None:
    """Kill the receiver."""
    return _kill_process(world, "receiver")


def kill_beat(world: World, _rng: random.Random) -> Hit | None:
    """Kill a beat."""
    return _kill_process(world, "beat1")


def _kill_process(world: World, name: str) -> Hit | None:
    process = world.local.processes.get(name)
    if process is None or not process.is_running:  # another fault has it
        return None
    process.kill()
    return Hit(_nothing, is_kill=True)


def no_beat(world: World, rng: random.Random) -> Hit | None:
    """Take every beat away for a while."""
    names = [name for name in world.local.processes if name.startswith("beat")]
    taken = {name: world.local.processes.pop(name) for name in names}
    for process in taken.values():
        process.kill()

    def heal() -> None:
        for name, process in taken.items():
            process.launch()
            world.local.processes[name] = process

    return Hit(heal, seconds=rng.uniform(3, 8), is_kill=True)


def stop_worker(world: World, rng: random.Random) -> Hit | None:
    """Freeze a worker and its children with SIGSTOP for twice its lease; it wakes up fenced."""
    names = [name for name in _workers(world) if name.startswith("keep")]
    if not names:
        return None
    name = rng.choice(names)
    pid = world.local.processes[name].pid or 0
    _signal_group(pid, signal.SIGSTOP)
    return Hit(lambda: _signal_group(pid, signal.SIGCONT), seconds=2 * world.lease_seconds, victim=name)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_postgres(world: World, rng: random.Random) -> Hit | None:
    """Kill PostgreSQL and start it again after a moment."""
    return _kill_server(world.local.stack.postgres, rng)


def kill_valkey(world: World, rng: random.Random) -> Hit | None:
    """Kill the broker and start it again after a moment."""
    return _kill_server(world.local.stack.valkey, rng)


def kill_seaweedfs(world: World, rng: random.Random) -> Hit | None:
    """Kill the object storage and start it again after a moment."""
    return _kill_server(world.local.stack.seaweedfs, rng)


def _kill_server(server: Server, rng: random.Random) -> Hit | None:
    if not server.is_running:
        return None
    server.kill()
    return Hit(server.launch, seconds=rng.uniform(0.2, 4), is_kill=True)


def empty_broker(world: World, _rng: random.Random) -> Hit | None:
    """Throw every message away."""
    try:
        redis.Redis.from_url(world.local.stack.valkey.url(), socket_timeout=2).flushall()
    except redis.RedisError:
        return None
    return Hit(_nothing)


def cut(server: str) -> Inject:
    """Reset every connection to a server."""

    def inject(world: World, _rng: random.Random) -> Hit | None:
        world.proxies[server].reset_connections()
        return Hit(_nothing)

    return inject


def stall(server: str) -> Inject:
    """Let no byte to or from a server through for a while."""

    def inject(world: World, rng: random.Random) -> Hit | None:
        proxy = world.proxies[server]
        proxy.stall()
        return Hit(proxy.resume, seconds=rng.uniform(2, 12))

    return inject


def disk_full(world: World, rng: random.Random) -> Hit | None:
    """Keep the children of a worker from writing files of any size."""
    names = [name for name in _workers(world) if name.startswith("keep")]
    if not names:
        return None
    name = rng.choice(names)
    children = children_of(world.local.processes[name].pid or 0)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for child in children:
        _limit(child, (FILE_LIMIT_BYTES, resource.RLIM_INFINITY))

    def heal() -> None:
        for child in children:
            _limit(child, unlimited)

    return Hit(heal, seconds=rng.uniform(2, 6), victim=name) if children else None


def _limit(pid: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def clock_jump(world: World, rng: random.Random) -> Hit | None:
    """Move the database's clock by an hour, forward or back, for a while; every open connection sees it."""
    hours = rng.choice((1, -1))
    if not _shift_clock(world, f"{hours} hours"):
        return None
    return Hit(lambda: _restore_clock(world), seconds=rng.uniform(1, 3))


def _shift_clock(world: World, by: str) -> bool:
    try:
        conn = connect(world.local.stack.postgres.url(), name="moorage-drill")
        conn.execute(f"ALTER SYSTEM SET moorage.clock_shift = '{by}'".encode())
        conn.execute("SELECT pg_reload_conf()")
        conn.close()
    except Exception:  # noqa: BLE001 (PostgreSQL is being broken by other faults)
        return False
    return True


def _restore_clock(world: World) -> None:
    while not _shift_clock(world, "0 hours"):
        world.local.stack.restart_dead()


def outage(world: World, rng: random.Random) -> Hit | None:
    """Have the provider's API and files answer 503 for a while."""
    seconds = rng.uniform(2, 6)
    world.standin.begin_outage(seconds, outputs=True)
    return Hit(_nothing, seconds=seconds)


# Kind of fault: what does it, and how often it comes among the others.
KINDS: Final[dict[str, tuple[Inject, int]]] = {
    "pool child killed": (kill_child, 12),
    "worker killed": (kill_worker, 6),
    "receiver killed": (kill_receiver, 5),
    "beat killed": (kill_beat, 3),
    "no beat": (no_beat, 2),
    "PostgreSQL killed": (kill_postgres, 4),
    "broker killed": (kill_valkey, 4),
    "storage killed": (kill_seaweedfs, 3),
    "worker frozen": (stop_worker, 2),
    "broker emptied": (empty_broker, 4),
    "broker cut": (cut("valkey"), 2),
    "broker stalled": (stall("valkey"), 2),
    "PostgreSQL cut": (cut("postgres"), 2),
    "PostgreSQL stalled": (stall("postgres"), 2),
    "storage cut": (cut("seaweedfs"), 2),
    "storage stalled": (stall("seaweedfs"), 2),
    "disk full": (disk_full, 2),
    "clock jump": (clock_jump, 1),
    "provider outage": (outage, 2),
}
