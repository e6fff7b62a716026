"""Calls made later, on a few threads."""

import heapq
import itertools
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


class Clock:
    """Runs calls when their time has come; what is not due yet when the process ends is dropped."""

    def __init__(self, threads: int = 32) -> None:
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._ready: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        for target in (self._watch, *[self._work] * threads):
            threading.Thread(target=target, daemon=True).start()

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Run a call `seconds` from now."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), call, args))
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, call, args = heapq.heappop(self._due)
            self._ready.put((call, args))

    def _work(self) -> None:
        while True:
            call, args = self._ready.get()
            try:
                call(*args)
            except Exception:  # noqa: BLE001 (outermost line of a thread: say it, keep the thread)
                sys.stderr.write(traceback.format_exc())
