"""Faults of servers that respond and refuse, for the forms of the drill."""

import contextlib
import random

import redis

from db.connection import Connection, connect
from embedded import small_disk
from moorage.errors import DatabaseUnavailable
from simulation.chaos.targets import ActiveFault, Targets

LOCKED_JOBS = """
SELECT id FROM jobs WHERE state IN ('open', 'keeping') ORDER BY created_at DESC LIMIT 2 FOR UPDATE SKIP LOCKED
"""
STORAGE_SECONDS = 30.0  # longer than a worker needs to start on a loaded machine


def fill_broker(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Set a memory limit below what the broker uses: with `noeviction` it refuses each write."""
    if not _command_broker(targets, "CONFIG", "SET", "maxmemory", "1"):
        return None
    return ActiveFault(lambda: _heal_broker(targets, "CONFIG", "SET", "maxmemory", "0"), seconds=rng.uniform(3, 12))


def demote_broker(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Make the broker the replica of a server that does not exist: it is read-only, as in a failover."""
    if not _command_broker(targets, "REPLICAOF", "127.0.0.1", "1"):
        return None
    return ActiveFault(lambda: _heal_broker(targets, "REPLICAOF", "NO", "ONE"), seconds=rng.uniform(3, 12))


def _command_broker(targets: Targets, *command: str) -> bool:
    try:
        with redis.Redis.from_url(targets.local.stack.valkey.url(), socket_timeout=2) as client:
            client.execute_command(*command)
    except redis.RedisError:  # another fault
        return False
    return True


def _heal_broker(targets: Targets, *command: str) -> None:
    while not _command_broker(targets, *command):
        pass


def refuse_writes(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Make PostgreSQL read-only for every transaction, as a managed server does whose disk is full."""

    def switch(value: str) -> None:
        with contextlib.closing(_connect(targets)) as conn:
            conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            conn.execute("SELECT pg_reload_conf()")

    switch("on")
    return ActiveFault(lambda: switch("off"), seconds=rng.uniform(3, 12))


def fill_database_disk(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Fill the file system of PostgreSQL's tables: a table that must grow cannot."""
    return _fill(targets, rng)


def fill_worker_disk(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Fill the file system of all temporary files."""
    return _fill(targets, rng)


def _fill(targets: Targets, rng: random.Random) -> ActiveFault | None:
    if targets.small_disk is None or (targets.small_disk / "filler").exists():
        return None
    return ActiveFault(small_disk.occupy(targets.small_disk).unlink, seconds=rng.uniform(4, 12))


def hold_row_locks(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Hold the rows of two jobs in a transaction that its client has forgotten."""
    conn: Connection = _connect(targets)
    conn.execute("BEGIN")
    if not conn.execute(LOCKED_JOBS).fetchall():
        conn.close()
        return None
    return ActiveFault(conn.close, seconds=rng.uniform(8, 20))


def restart_quick_without_storage(targets: Targets, _rng: random.Random) -> ActiveFault | None:
    """Kill storage, and the worker that ingests webhooks: it must start and work without storage."""
    storage, quick = targets.local.stack.seaweedfs, targets.local.processes["quick"]
    if not storage.is_running or not quick.is_running:
        return None
    storage.kill()
    quick.kill()
    return ActiveFault(storage.launch, seconds=STORAGE_SECONDS, victim="quick", is_kill=True)


def promote_standby(targets: Targets, rng: random.Random) -> ActiveFault | None:
    """Kill the primary for good and promote its standby after some seconds."""
    standby = targets.standby
    if standby is None or not standby.primary.is_running:
        return None
    standby.primary.kill()
    return ActiveFault(standby.promote, seconds=rng.uniform(2, 8), is_kill=True)


def _connect(targets: Targets) -> Connection:
    try:
        return connect(targets.database_url, name="moorage-drill")
    except DatabaseUnavailable:
        targets.local.stack.postgres.await_ready()
        return connect(targets.database_url, name="moorage-drill")
