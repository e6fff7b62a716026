"""Times at which the stand-in answers 503."""

import threading
import time


class Outages:
    """One outage at a time; a new one replaces the old, and one of 0 s ends it."""

    def __init__(self) -> None:
        self._until = 0.0
        self._outputs_too = False
        self._lock = threading.Lock()

    def begin(self, seconds: float, *, outputs: bool) -> None:
        """Be away for `seconds` from now: the API, and the outputs too if asked."""
        with self._lock:
            self._until, self._outputs_too = time.monotonic() + seconds, outputs

    def api(self) -> bool:
        """Return whether the API is away."""
        with self._lock:
            return time.monotonic() < self._until

    def outputs(self) -> bool:
        """Return whether outputs are away."""
        with self._lock:
            return self._outputs_too and time.monotonic() < self._until
