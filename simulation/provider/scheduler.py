"""Delayed calls on a fixed number of threads."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Scheduler:
    """Runs calls at their time; calls that are not due at the end of the process are dropped."""

    def __init__(self, threads: int = 32) -> None:
        self._loop = asyncio.new_event_loop()
        self._executor = ThreadPoolExecutor(threads)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run_after(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        def submit() -> None:
            self._executor.submit(_run_reporting_errors, function, args)

        self._loop.call_soon_threadsafe(lambda: self._loop.call_later(seconds, submit))


def _run_reporting_errors(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except Exception:  # noqa: BLE001 (outermost line of a thread: report it, keep the thread)
        sys.stderr.write(traceback.format_exc())
