"""The faults of a drill: each breaks a component or makes it refuse work, and is healed after its duration."""

import contextlib
import os
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import psycopg
import redis

from db.connection import connect
from embedded import small_disk
from moorage.errors import DatabaseUnavailable
from simulation.chaos.recovery import FILES, FILES_OF_VICTIM, TICKS, WAKES, WEBHOOKS, WORK, Probe
from simulation.chaos.targets import Fault, Injector, Targets

Change = Callable[[Targets, str], bool]  # by a command; False: the server did not accept it

FILE_LIMIT_BYTES: Final = 4096  # "disk full": a worker cannot write beyond this size of a file
STORAGE_SECONDS: Final = 30.0  # without it: longer than a worker needs to start on a loaded machine
LOCKED_JOBS: Final = """
SELECT id FROM jobs WHERE state IN ('open', 'keeping') ORDER BY created_at DESC LIMIT 2 FOR UPDATE SKIP LOCKED
"""


def kill_pool_child(targets: Targets, rng: random.Random) -> Fault | None:
    worker = targets.draw_worker(rng, "keep", "quick", "sweeps")
    children = worker.list_children() if worker else []
    if not worker or not children:
        return None
    os.kill(rng.choice(children), signal.SIGKILL)
    return Fault(victim=worker.name, is_kill=True)


def kill_worker(targets: Targets, rng: random.Random) -> Fault | None:
    """Kill a worker with its process group; the supervisor restarts it."""
    worker = targets.draw_worker(rng, "keep", "quick", "sweeps")
    if worker is None:
        return None
    worker.kill()
    return Fault(victim=worker.name, is_kill=True)


def kill_process(targets: Targets, _rng: random.Random, *, name: str) -> Fault | None:
    process = targets.local.processes.get(name)
    if process is None or not process.is_running:  # by another fault
        return None
    process.kill()
    return Fault(is_kill=True)


def kill_server(targets: Targets, rng: random.Random, *, name: str) -> Fault | None:
    """Kill a server and restart it after up to 4 s."""
    server = next(server for server in targets.local.stack.servers if server.name == name)
    if not server.is_running:
        return None
    server.kill()
    return Fault(server.launch, seconds=rng.uniform(0.2, 4), is_kill=True)


def stop_all_beats(targets: Targets, rng: random.Random) -> Fault | None:
    processes = targets.local.processes
    stopped = {name: processes.pop(name) for name in list(processes) if name.startswith("beat")}
    for process in stopped.values():
        process.kill()

    def heal() -> None:
        for process in stopped.values():
            process.launch()
        processes.update(stopped)

    return Fault(heal, seconds=rng.uniform(3, 8), is_kill=True)


def freeze_worker(targets: Targets, rng: random.Random) -> Fault | None:
    """Stop a worker and its children with SIGSTOP for twice its lease, so that it resumes fenced."""
    worker = targets.draw_worker(rng, "keep")
    if worker is None:
        return None
    pid = worker.pid
    worker.signal_group(signal.SIGSTOP)

    def heal() -> None:
        if worker.pid == pid:  # else another fault killed it: the next one may be frozen, too
            worker.signal_group(signal.SIGCONT)

    return Fault(heal, seconds=2 * targets.lease_seconds, victim=worker.name)


def empty_broker(targets: Targets, _rng: random.Random) -> Fault | None:
    """Delete every message."""
    return Fault() if _command_broker(targets, "FLUSHALL") else None


def refuse_messages(targets: Targets, rng: random.Random, *, begin: str, end: str) -> Fault | None:
    """Make the broker refuse each write, between two commands."""
    return _switch(targets, rng, (3, 12), _command_broker, begin, end)


def _command_broker(targets: Targets, command: str) -> bool:
    try:
        with redis.Redis.from_url(targets.local.stack.valkey.url(), socket_timeout=2) as client:
            client.execute_command(*command.split())
    except redis.RedisError:  # another fault
        return False
    return True


def _switch(
    targets: Targets, rng: random.Random, seconds: tuple[float, float], change: Change, begin: str, end: str
) -> Fault | None:
    """Change a server for a time, and back as soon as it accepts that: another fault may have broken it."""

    def heal() -> None:
        while not change(targets, end):
            targets.local.stack.restart_dead()

    return Fault(heal, seconds=rng.uniform(*seconds)) if change(targets, begin) else None


def cut_connections(targets: Targets, _rng: random.Random, *, name: str) -> Fault | None:
    targets.proxies[name].reset_connections()
    return Fault()


def stall_connections(targets: Targets, rng: random.Random, *, name: str) -> Fault | None:
    targets.proxies[name].stall()
    return Fault(targets.proxies[name].resume, seconds=rng.uniform(2, 12))


def fill_disk(targets: Targets, rng: random.Random) -> Fault | None:
    """Limit the size of files that the children of a worker can write."""
    worker = targets.draw_worker(rng, "keep")
    children = worker.list_children() if worker else []
    if not worker or not children:
        return None

    def limit(max_bytes: int) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(child, resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))

    limit(FILE_LIMIT_BYTES)
    return Fault(lambda: limit(resource.RLIM_INFINITY), seconds=rng.uniform(2, 6), victim=worker.name)


def jump_clock(targets: Targets, rng: random.Random) -> Fault | None:
    """Move the database's clock by an hour, ahead or back; also for open connections."""
    begin = f"moorage.clock_shift = '{rng.choice((1, -1))} hours'"
    return _switch(targets, rng, (1, 3), _set_in_postgres, begin, "moorage.clock_shift = '0 hours'")


def refuse_writes(targets: Targets, rng: random.Random) -> Fault | None:
    """Make PostgreSQL read-only for every transaction, as a managed server does whose disk is full."""
    name = "default_transaction_read_only"
    return _switch(targets, rng, (3, 12), _set_in_postgres, f"{name} = on", f"{name} = off")


def _set_in_postgres(targets: Targets, setting: str) -> bool:
    try:
        with contextlib.closing(connect(targets.database_url, name="moorage-drill")) as conn:
            conn.execute(f"ALTER SYSTEM SET {setting}".encode())
            conn.execute("SELECT pg_reload_conf()")
    except (psycopg.OperationalError, DatabaseUnavailable):  # another fault
        return False
    return True


def begin_provider_outage(targets: Targets, rng: random.Random) -> Fault | None:
    """Make the provider's APIs and files return 503."""
    seconds = rng.uniform(2, 6)
    targets.standin.begin_outage(seconds, outputs=True)
    return Fault(seconds=seconds)


def fill_small_disk(targets: Targets, rng: random.Random) -> Fault | None:
    """Fill the file system of PostgreSQL's tables, where a table that must grow cannot, or of temporary files."""
    if targets.small_disk is None or (targets.small_disk / "filler").exists():
        return None
    return Fault(small_disk.occupy(targets.small_disk).unlink, seconds=rng.uniform(4, 12))


def hold_row_locks(targets: Targets, rng: random.Random) -> Fault | None:
    """Hold the rows of two jobs in a transaction that its client has forgotten."""
    try:
        conn = connect(targets.database_url, name="moorage-drill")
    except DatabaseUnavailable:
        return None
    conn.execute("BEGIN")
    if not conn.execute(LOCKED_JOBS).fetchall():
        conn.close()
        return None
    return Fault(conn.close, seconds=rng.uniform(8, 20))


def restart_quick_without_storage(targets: Targets, _rng: random.Random) -> Fault | None:
    """Kill storage, and the worker that ingests webhooks: it must start and work without storage."""
    storage, quick = targets.local.stack.seaweedfs, targets.local.processes["quick"]
    if not storage.is_running or not quick.is_running:
        return None
    storage.kill()
    quick.kill()
    return Fault(storage.launch, seconds=STORAGE_SECONDS, victim="quick", is_kill=True)


def promote_standby(targets: Targets, rng: random.Random) -> Fault | None:
    """Kill the primary for good and promote its standby after some seconds."""
    standby = targets.standby
    if standby is None or not standby.primary.is_running:
        return None
    standby.primary.kill()
    return Fault(standby.promote, seconds=rng.uniform(2, 8), is_kill=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind of fault.

    Args:
        weight: its relative frequency among faults of every kind; 0: it needs a form of its own.
        probe: measures the recovery from the end of the fault; None: the fault interrupts leases, and the recovery is
            measured by the rows that were held.
        disturbs: no work is possible during it: recoveries that it delays are reported separately.
    """

    inject: Injector
    weight: int = 0
    probe: Probe | None = None
    disturbs: bool = False


KINDS: Final[dict[str, Kind]] = {
    "pool child killed": Kind(kill_pool_child, 12),
    "worker killed": Kind(kill_worker, 6),
    "receiver killed": Kind(partial(kill_process, name="receiver"), 5, WEBHOOKS),
    "beat killed": Kind(partial(kill_process, name="beat1"), 3, TICKS),
    "no beat": Kind(stop_all_beats, 2, TICKS, disturbs=True),
    "PostgreSQL killed": Kind(partial(kill_server, name="postgres"), 4, WORK, disturbs=True),
    "broker killed": Kind(partial(kill_server, name="valkey"), 4, WAKES, disturbs=True),
    "storage killed": Kind(partial(kill_server, name="seaweedfs"), 3, FILES, disturbs=True),
    "worker frozen": Kind(freeze_worker, 2),
    "broker emptied": Kind(empty_broker, 4, WAKES),
    "broker cut": Kind(partial(cut_connections, name="valkey"), 2, WAKES),
    "broker stalled": Kind(partial(stall_connections, name="valkey"), 2, WAKES, disturbs=True),
    "PostgreSQL cut": Kind(partial(cut_connections, name="postgres"), 2, WORK, disturbs=True),
    "PostgreSQL stalled": Kind(partial(stall_connections, name="postgres"), 2, WORK, disturbs=True),
    "storage cut": Kind(partial(cut_connections, name="seaweedfs"), 2, FILES),
    "storage stalled": Kind(partial(stall_connections, name="seaweedfs"), 2, FILES, disturbs=True),
    "disk full": Kind(fill_disk, 2, FILES_OF_VICTIM),
    "clock jump": Kind(jump_clock, 1, WORK, disturbs=True),
    "provider outage": Kind(begin_provider_outage, 2, FILES, disturbs=True),
    # Above its memory limit, with `noeviction`; as the replica of a server that does not exist, as in a failover.
    "broker full": Kind(
        partial(refuse_messages, begin="CONFIG SET maxmemory 1", end="CONFIG SET maxmemory 0"),
        probe=WAKES,
        disturbs=True,
    ),
    "broker read-only": Kind(
        partial(refuse_messages, begin="REPLICAOF 127.0.0.1 1", end="REPLICAOF NO ONE"), probe=WAKES, disturbs=True
    ),
    "PostgreSQL read-only": Kind(refuse_writes, probe=WORK, disturbs=True),
    "PostgreSQL disk full": Kind(fill_small_disk, probe=WORK, disturbs=True),
    "row locks held": Kind(hold_row_locks, probe=WORK, disturbs=True),
    "primary lost": Kind(promote_standby, probe=WORK, disturbs=True),
    "quick without storage": Kind(restart_quick_without_storage, probe=FILES, disturbs=True),
    "worker disk full": Kind(fill_small_disk, probe=FILES, disturbs=True),
}
