"""Publishes wakes from a thread of its own: the broker being away changes no answer."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from moorage import logs
from moorage.model import Wake
from worker import publish

log = logs.get(__name__)

MAX_WAITING: Final = 100


class Waker:
    """One thread and a bounded line before it. A wake that is dropped costs one tick of dispatch."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "waker")
        self._room = threading.BoundedSemaphore(MAX_WAITING)

    def offer(self, wakes: Sequence[Wake]) -> None:
        """Have wakes published soon, or drop them when too many wait already."""
        if wakes and self._room.acquire(blocking=False):
            self._executor.submit(self._publish, wakes)

    def close(self) -> None:
        """Drop what still waits; the one being sent takes about two seconds at most."""
        self._executor.shutdown(cancel_futures=True)

    def _publish(self, wakes: Sequence[Wake]) -> None:
        """Publish: the outermost line of this thread."""
        try:
            publish.wake_all(wakes)
        except Exception:
            log.error("wake.failed", exc_info=True, wakes=len(wakes))
        finally:
            self._room.release()
