"""CPU time and memory of processes and their descendants, from /proc."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")


def _list_trees() -> tuple[dict[int, list[int]], dict[int, float]]:
    """Return the children of each process, and its CPU time including children that ended."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            children.setdefault(int(fields[1]), []).append(number)
            used[number] = sum(map(int, fields[11:15])) / TICKS
    return children, used


def list_descendants(pid: int) -> list[int]:
    """Return a process and its descendants that still run."""
    children, _ = _list_trees()
    found, waiting = [], [pid]
    while waiting:
        number = waiting.pop()
        found.append(number)
        waiting += children.get(number, [])
    return found


def cpu_seconds(*pids: int) -> float:
    """Return the CPU time of processes and their descendants, of those that ended as well."""
    children, used = _list_trees()
    total, waiting = 0.0, list(pids)
    while waiting:
        number = waiting.pop()
        total += used.get(number, 0.0)
        waiting += children.get(number, [])
    return total


def pss_bytes(*pids: int) -> int:
    """Return the proportional set size of processes and their descendants: shared pages are counted once in all."""
    total = 0
    for number in {found for pid in pids for found in list_descendants(pid)}:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def await_idle(pids: Iterable[int], *, seconds: float = 20.0, cpu: float = 0.05) -> None:
    """Wait until processes use less CPU time than `cpu` in half a second, at most `seconds`."""
    pids = list(pids)
    end = time.monotonic() + seconds
    used = -1.0
    while cpu_seconds(*pids) - used > cpu and time.monotonic() < end:
        used = cpu_seconds(*pids)
        time.sleep(0.5)


def await_true(condition: Callable[[], bool], what: str, *, seconds: float = 300.0, pause: float = 0.05) -> None:
    """Wait for a condition. Raises SystemExit: a bench without its result has failed."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(pause)
