"""Who is to be killed: the process, or the one child of its pool, that keeps a file at this moment."""

import contextlib
import os
import signal
from typing import Any

import pytest
import redis
from celery import Celery

from embedded.process import Process
from tests.acceptance.world import Asked, World

# Long enough to find who holds it; whoever takes it up afterwards is quick.
SLOW = {"faults": {"0": "slow_once"}}


def worker_of(world: World, leased: dict[str, Any]) -> Process:
    """Return the worker process that holds an output."""
    return world.local.processes[leased["leased_by"].split("@", 1)[0]]


def child_of(world: World, leased: dict[str, Any]) -> int | None:
    """Return the pool child that holds an output, as its worker tells it; None when that has ended since."""
    node, task_id = leased["leased_by"].split("/", 1)
    told: dict[str, Any] = {}
    with Celery(broker=world.local.stack.valkey.url(), set_as_current=False) as asker:
        for _ in range(3):  # kombu keeps connections, and finds out here that the broker was restarted since
            with contextlib.suppress(redis.ConnectionError):
                told = asker.control.inspect([node], timeout=10, limit=1).active() or {}
                break
    found = [task["worker_pid"] for task in told.get(node, []) if task["id"] == task_id]
    return int(found[0]) if found else None


def kill_child(world: World, asked: Asked) -> dict[str, Any] | None:
    """Kill the pool child that keeps a file of a job; return the output as it was held, None where it had ended."""
    leased = world.await_leased(asked)
    child = child_of(world, leased)
    if child is None or not _is_held(world, leased):
        return None
    os.kill(child, signal.SIGKILL)
    return leased


def kill_any_child(world: World) -> tuple[Asked, dict[str, Any]]:
    """Kill the pool child that keeps a new job's file; return both. Another job is asked for where one had ended."""
    for _ in range(5):
        asked = world.ask(SLOW)
        if leased := kill_child(world, asked):
            return asked, leased
        world.await_end(asked)
    pytest.fail("five times a file had been kept before it was known by whom")


def kill_any_worker(world: World) -> tuple[Asked, dict[str, Any]]:
    """Kill the whole worker that keeps a new job's file; return both. Another job where a file had been kept first."""
    for _ in range(5):
        asked = world.ask(SLOW)
        leased = world.await_leased(asked)
        worker_of(world, leased).kill()
        if _is_held(world, leased):
            return asked, leased
        world.mend()
    pytest.fail("five times a file had been kept before its worker was killed")


def _is_held(world: World, leased: dict[str, Any]) -> bool:
    held = "SELECT 1 FROM outputs WHERE id = %(id)s AND lease_token = %(token)s"
    return bool(world.rows(held, id=leased["id"], token=leased["lease_token"]))
