"""Publishes wakes from a thread of its own, so that no request ever waits for the broker."""

import queue
import threading
from collections.abc import Callable
from typing import Final

from moorage import logs, metrics
from moorage.model import Wake
from worker import publish

log = logs.get(__name__)

QUEUE_LENGTH: Final = 1000
PAUSE_SECONDS: Final = 1.0  # after a wake that the broker did not take


class Relay:
    """A bounded queue and one thread. A wake that is dropped costs one tick of dispatch, nothing else."""

    def __init__(self, send: Callable[[Wake], bool] = publish.wake, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._send = send
        self._pause_seconds = pause_seconds
        self._wakes: queue.Queue[Wake] = queue.Queue(QUEUE_LENGTH)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, *wakes: Wake) -> None:
        """Have wakes published soon; drop and count those for which there is no room."""
        for wake in wakes:
            try:
                self._wakes.put_nowait(wake)
            except queue.Full:
                metrics.WAKES_DROPPED.labels("full").inc()

    def stop(self, *, timeout_seconds: float = 2.0) -> None:
        """Publish what still waits, as long as the broker takes it, and end the thread."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._wakes.empty()):
            try:
                wake = self._wakes.get(timeout=0.2)
            except queue.Empty:
                continue
            if not self._publish(wake) and self._stopping.wait(self._pause_seconds):
                return

    def _publish(self, wake: Wake) -> bool:
        """Publish one wake: the outermost line of this thread, which must live as long as the process."""
        try:
            sent = self._send(wake)
        except Exception:
            log.error("wake.failed", exc_info=True, step=wake.step, row_id=wake.row_id)
            sent = False
        if sent:
            metrics.WAKES_SENT.inc()
        else:
            metrics.WAKES_DROPPED.labels("failed").inc()
        return sent
