"""The faults of a drill: each breaks one component, identifies it, and is healed after its duration."""

import contextlib
import os
import random
import resource
import signal
from functools import partial
from typing import Final

import redis

from db.connection import connect
from simulation.chaos import refusals
from simulation.chaos.targets import ActiveFault, Injector, Targets

FILE_LIMIT_BYTES: Final = 4096  # "disk full": a worker cannot write beyond this size of a file


def kill_pool_child(targets: Targets, rng: random.Random) -> ActiveFault | None:
    name = targets.draw_worker(rng, "keep", "quick", "sweeps")
    children = targets.child_pids(name) if name else []
    if not name or not children:
        return None
    os.kill(rng.choice(children), signal.SIGKILL)
    return ActiveFault(victim=name, is_kill=True)


def kill_worker(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Kill a worker with its process group; the supervisor restarts it."""
    name = targets.draw_worker(rng, "keep", "quick", "sweeps")
    if name is None:
        return None
    targets.local.processes[name].kill()
    return ActiveFault(victim=name, is_kill=True)


def kill_process(targets: Targets, _rng: random.Random, *, name: str) -> ActiveFault | None:
    process = targets.local.processes.get(name)
    if process is None or not process.is_running:  # by another fault
        return None
    process.kill()
    return ActiveFault(is_kill=True)


def kill_server(targets: Targets, rng: random.Random, *, name: str) -> ActiveFault | None:
    """Kill a server and restart it after up to 4 s."""
    server = next(server for server in targets.local.stack.servers if server.name == name)
    if not server.is_running:
        return None
    server.kill()
    return ActiveFault(server.launch, seconds=rng.uniform(0.2, 4), is_kill=True)


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


def cut_connections(targets: Targets, _rng: random.Random, *, name: str) -> ActiveFault | None:
    targets.proxies[name].reset_connections()
    return ActiveFault()


def stall_connections(targets: Targets, rng: random.Random, *, name: str) -> ActiveFault | None:
    targets.proxies[name].stall()
    return ActiveFault(targets.proxies[name].resume, seconds=rng.uniform(2, 12))


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
            conn = connect(targets.database_url, name="moorage-drill")
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


KINDS: Final[dict[str, Injector]] = {
    "pool child killed": kill_pool_child,
    "worker killed": kill_worker,
    "receiver killed": partial(kill_process, name="receiver"),
    "beat killed": partial(kill_process, name="beat1"),
    "no beat": stop_all_beats,
    "PostgreSQL killed": partial(kill_server, name="postgres"),
    "broker killed": partial(kill_server, name="valkey"),
    "storage killed": partial(kill_server, name="seaweedfs"),
    "worker frozen": freeze_worker,
    "broker emptied": empty_broker,
    "broker cut": partial(cut_connections, name="valkey"),
    "broker stalled": partial(stall_connections, name="valkey"),
    "PostgreSQL cut": partial(cut_connections, name="postgres"),
    "PostgreSQL stalled": partial(stall_connections, name="postgres"),
    "storage cut": partial(cut_connections, name="seaweedfs"),
    "storage stalled": partial(stall_connections, name="seaweedfs"),
    "disk full": fill_disk,
    "clock jump": jump_clock,
    "provider outage": begin_provider_outage,
    "broker full": refusals.fill_broker,
    "broker read-only": refusals.demote_broker,
    "PostgreSQL read-only": refusals.refuse_writes,
    "PostgreSQL disk full": refusals.fill_database_disk,
    "row locks held": refusals.hold_row_locks,
    "primary lost": refusals.promote_standby,
    "quick without storage": refusals.restart_quick_without_storage,
    "worker disk full": refusals.fill_worker_disk,
}
