"""Delayed calls on a fixed number of threads."""

import heapq
import itertools
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

Call = tuple[Callable[..., None], tuple[Any, ...]]


class Scheduler:
    """Runs calls at their time; calls that are not due at the end of the process are dropped."""

    def __init__(self, threads: int = 32) -> None:
        self._pending: list[tuple[float, int, Call]] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._due: queue.SimpleQueue[Call] = queue.SimpleQueue()
        for target in (self._dispatch, *[self._work] * threads):
            threading.Thread(target=target, daemon=True).start()

    def run_after(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        with self._changed:
            heapq.heappush(self._pending, (time.monotonic() + seconds, next(self._numbers), (function, args)))
            self._changed.notify()

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                wait = self._pending[0][0] - time.monotonic() if self._pending else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, call = heapq.heappop(self._pending)
            self._due.put(call)

    def _work(self) -> None:
        while True:
            function, args = self._due.get()
            try:
                function(*args)
            except Exception:  # noqa: BLE001 (outermost line of a thread: report it, keep the thread)
                sys.stderr.write(traceback.format_exc())
